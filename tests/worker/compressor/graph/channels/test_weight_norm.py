"""Weights that are divided by their own norm in the file, as weight normalisation leaves them when nothing is folded."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut


class Normed(nn.Module):
    """Convolutions in a row and one beside them; `dim` is what each norm is for: every output, or the whole weight."""

    shape = (6, 16)

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv1d(6, 12, 3, padding=1), dim=dim)
        self.b = parametrizations.weight_norm(nn.Conv1d(12, 16, 3, padding=1), dim=dim)
        self.skip, self.head = nn.Conv1d(12, 16, 1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.a(x))
        return self.head(functional.relu(self.b(x) + self.skip(x)).mean(2))


class Raised(nn.Module):
    """A transposed convolution, whose norms are those of its inputs."""

    shape = (6, 16)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv1d(6, 12, 3), nn.Linear(8, 4)
        self.up = parametrizations.weight_norm(nn.ConvTranspose1d(12, 8, 4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(functional.relu(self.a(x))).mean(2))


class Standardised(nn.Module):
    """Rows of the second weight with mean zero and variance one, as in networks without normaliser."""

    shape = (6, 16)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(6, 12, 3), nn.Conv1d(12, 16, 3), nn.Linear(16, 4)
        self.gain = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.b.weight.reshape(1, 16, -1)
        weight = functional.batch_norm(weight, None, None, self.gain, training=True, momentum=0.0).reshape(16, 12, 3)
        return self.head(functional.relu(functional.conv1d(functional.relu(self.a(x)), weight, self.b.bias)).mean(2))


class Kept(nn.Module):
    """A scale stored as its logarithm, and one in half precision."""

    shape = (6,)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)
        self.log = nn.Parameter(torch.randn(12))
        self.coarse = nn.Parameter(torch.randn(12).half())

    def forward(self, x):
        return self.b(torch.relu(self.a(x) * torch.exp(self.log)) * self.coarse.float())


def load(module, folder, opset=13):
    torch.manual_seed(3)
    path = folder / "m.onnx"
    torch.onnx.export(
        module.eval(), (torch.randn(2, *module.shape),), path, dynamo=False, do_constant_folding=False, opset_version=opset,
        input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    return import_model(path, "onnx", None)[0], path


class TestWeightsDividedByTheirNorm:
    @pytest.mark.parametrize("dim", [0, None])
    def test_are_cut_exactly(self, dim, tmp_path):
        network, path = load(Normed(dim), tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert sorted(group.num_units for group in analysis.groups) == [12, 16]
        assert all(group.exact for group in analysis.groups)
        rng = np.random.default_rng(4)
        kept = {group.id: rng.permutation(group.num_units)[: group.num_units // 2] for group in analysis.groups}
        made = cut(network, analysis, kept)
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-2

    def test_whose_norm_would_be_masked_to_zero_are_inexact(self, tmp_path):
        network, _ = load(Raised(), tmp_path)
        groups = {group.num_units: group for group in analyse(network, network.sample_shapes).groups}
        assert not groups[12].exact and "norm" in groups[12].inexact_because
        assert groups[8].exact

    def test_or_standardised_are_cut_and_inexact_where_they_are_read(self, tmp_path):
        network, path = load(Standardised(), tmp_path, opset=17)
        analysis = analyse(network, network.sample_shapes)
        assert {group.num_units: group.exact for group in analysis.groups} == {12: False, 16: True}
        kept = nets.random_kept(analysis.groups, 0.5)
        cut(network, analysis, kept)
        made = cut(network, analysis, {group.id: kept[group.id] for group in analysis.groups if group.exact})
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-2

    def test_or_standardised_come_in_as_exported_programs(self, tmp_path):
        torch.manual_seed(3)
        program = torch.export.export(Standardised().eval(), (torch.randn(2, 6, 16),))
        torch.export.save(program, tmp_path / "m.pt2")
        network, _ = import_model(tmp_path / "m.pt2", "exported_program", None)
        analysis = analyse(network, network.sample_shapes)
        assert {group.num_units: group.exact for group in analysis.groups} == {12: False, 16: True}
        weights = [tensor.numel() for tensor in Standardised().parameters()]
        counts = count(network, network.sample_shapes)
        assert counts.num_params == sum(weights)
        assert [row.has_weights for row in counts.layers if row.op == "Conv"] == [True, True]


def test_weights_that_an_activation_or_a_cast_makes_are_cut(tmp_path):
    network, path = load(Kept(), tmp_path)
    analysis = analyse(network, network.sample_shapes)
    assert [(group.num_units, group.exact) for group in analysis.groups] == [(12, True)]
    made = cut(network, analysis, {0: [1, 4, 7]})
    assert {3} == {len(made.network.tensors[name]) for name in ("log", "coarse")}
    error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
    assert error < 1e-5 and control > 1e-2
