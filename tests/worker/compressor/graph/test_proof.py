import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class Score(nn.Module):
    """One number per sample; the sums before it are large and nearly the same for every sample."""

    shape = (3, 8, 8)
    num_scores = 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.hidden, self.head = nn.Linear(64 * 16, 64), nn.Linear(64, self.num_scores)
        nn.init.constant_(self.hidden.bias, 300.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Crowded(Score):
    """The same with several numbers."""

    num_scores = 5


def quiet_samples(network, num_samples):
    rng = np.random.default_rng(0)
    return {"x": (0.1 * rng.standard_normal((num_samples, *network.sample_shapes["x"][1:]))).astype(np.float32)}


class TestProve:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_a_right_cut_is_proven_and_the_control_differs(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        proof = prove(
            network, cut(network, analysis, nets.random_kept(analysis.groups, 0.5)), analysis, nets.samples(network)
        )
        assert proof.error < 1e-5 and proof.control > 1e-2 and not proof.vacuous

    def test_a_wrong_channel_is_found(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        wrong = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        name = next(name for name in wrong.network.tensors if wrong.network.tensors[name].ndim == 4)
        wrong.network.tensors[name] = wrong.network.tensors[name][::-1].copy()
        with pytest.raises(GraphError) as caught:
            prove(network, wrong, analysis, nets.samples(network))
        assert caught.value.code == "surgery_failed"

    def test_a_wrong_channel_behind_a_saturated_output_is_found(self, tmp_path):
        network, _ = nets.load(nets.Sequence, tmp_path)
        for name in [name for name in network.tensors if name.endswith("bias")]:
            network.tensors[name] = network.tensors[name] + np.float32(40)  # sigmoid of all this is 1
        analysis = analyse(network, network.sample_shapes)
        wrong = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        name = next(name for name in wrong.network.tensors if wrong.network.tensors[name].ndim == 3)
        wrong.network.tensors[name] = wrong.network.tensors[name][::-1].copy()
        with pytest.raises(GraphError):
            prove(network, wrong, analysis, nets.samples(network))

    def test_removing_what_was_zero_anyway_proves_nothing(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(group for group in analysis.groups if group.layers == ("/fc1/Gemm",))
        weight = network.tensors["fc2.weight"].copy()
        weight[:, 3:] = 0
        network.tensors["fc2.weight"] = weight
        proof = prove(network, cut(network, analysis, {group.id: [0, 1, 2]}), analysis, nets.samples(network))
        assert proof.vacuous and proof.error < 1e-5

    @pytest.mark.parametrize("num_samples", [1, 16])
    @pytest.mark.parametrize("kind", [Score, Crowded])
    def test_rounding_of_large_numbers_close_together_is_no_error(self, kind, num_samples, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        made = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        proof = prove(network, made, analysis, quiet_samples(network, num_samples))
        assert proof.error < 5e-5 and not proof.vacuous

    @pytest.mark.parametrize("kind", [Score, Crowded])
    def test_a_wrong_channel_of_large_numbers_close_together_is_found(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        wrong = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        wrong.network.tensors["hidden.weight"] = wrong.network.tensors["hidden.weight"][::-1].copy()
        with pytest.raises(GraphError):
            prove(network, wrong, analysis, quiet_samples(network, 16))

    def test_cut_is_frozen(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        with pytest.raises(dataclasses.FrozenInstanceError):
            cut(network, analysis, {0: [0]}).exact = False
