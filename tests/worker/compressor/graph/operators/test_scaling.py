"""Normalisations without weights, where onnxruntime has no answer, against the formula of the standard."""

import math

import numpy as np
import pytest
import torch

from tests.worker.compressor.graph.operators.single import load, one_node
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.training.executor import to_module

X = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)


class TestLocalResponse:
    @pytest.mark.parametrize("size", [2, 4])
    def test_of_an_even_number_one_more_neighbour_lies_behind(self, size, tmp_path):
        network = load(one_node("LRN", [X], 13, size=size, alpha=0.3, beta=0.6, bias=2.0), tmp_path)
        wanted = np.empty_like(X)
        for channel in range(5):
            first, last = channel - math.floor((size - 1) / 2), channel + math.ceil((size - 1) / 2)
            near = X[:, max(first, 0) : last + 1]
            wanted[:, channel] = X[:, channel] / (2.0 + 0.3 / size * (near**2).sum(1)) ** 0.6
        np.testing.assert_allclose(run(network, {"i0": X})["o0"], wanted, rtol=1e-5)


class TestUnitLength:
    def test_a_row_of_zeros_stays_zero(self, tmp_path):
        x = X.copy()
        x[0, :, 1, 2] = 0
        network = load(one_node("LpNormalization", [x], 22, axis=1), tmp_path)
        y = run(network, {"i0": x})["o0"]
        length = np.sqrt((x**2).sum(1, keepdims=True))
        np.testing.assert_allclose(y, np.where(length == 0, 0, x / np.where(length == 0, 1, length)), rtol=1e-5)


class TestMeanVariance:
    def test_recorded_module_takes_any_batch(self, tmp_path):
        network = load(one_node("MeanVarianceNormalization", [X], 13, axes=[2, 3]), tmp_path)
        module = to_module(network, single=True)
        again = module(torch.from_numpy(np.concatenate([X, X])))
        np.testing.assert_allclose(again[2:].numpy(), module(torch.from_numpy(X)).numpy(), rtol=1e-5)
