"""Penalties against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.training.executor import to_module
from worker.compressor.pruning.penalties import PENALTIES, Trainee


def trainee(folder, kind=nets.Residual, **options):
    network, _ = nets.load(kind, folder, **options)
    return Trainee(to_module(network), network, analyse(network, network.sample_shapes).groups)


def matrices(network):
    return {name: array for name, array in network.tensors.items() if array.ndim > 1 and array.dtype == np.float32}


def test_l1_sums_the_absolute_weights(tmp_path):
    one = trainee(tmp_path)
    want = sum(float(np.abs(array).sum()) for array in matrices(one.network).values())
    assert float(PENALTIES.get("l1")().of(one)()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("kind", [nets.Residual, nets.Shuffle])
def test_group_lasso_sums_the_norms_of_whole_units(kind, tmp_path):
    one = trainee(tmp_path, kind)
    want = 0.0
    for group in one.groups:
        squares = np.zeros(group.num_units)
        for part in group.slices:
            array = one.network.tensors[part.tensor]
            if array.ndim < 2 or part.role == "follows":
                continue
            units = np.atleast_2d(part.units)
            for row, piece in zip(units, array.reshape(len(units), -1, *array.shape[1:]), strict=True):
                for position, unit in enumerate(row):
                    if unit >= 0:
                        squares[unit] += float((np.take(piece, position, part.axis).astype(float) ** 2).sum())
        want += np.sqrt(squares).sum()
    value = PENALTIES.get("group_lasso")().of(one)()
    assert float(value) == pytest.approx(want, rel=1e-5)
    value.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in one.module.parameters())


def test_bn_scale_sums_the_scales(tmp_path):
    one = trainee(tmp_path, nets.Plain, keep_batchnorm=True)
    names = [node.inputs[1] for node in one.network.nodes if node.op == "BatchNormalization"]
    want = sum(float(np.abs(one.network.tensors[name]).sum()) for name in names)
    assert names and float(PENALTIES.get("bn_scale")().of(one)()) == pytest.approx(want, rel=1e-5)
