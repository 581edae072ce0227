"""One filter that slides over the channels themselves (ECA-Net): they can go, but the others have other neighbours then."""

import numpy as np
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.reconstruction.lockstep import reconstruct


class Gated(nn.Module):
    """Two convolutions; each channel of the first is scaled by what it and its neighbours are on average."""

    shape = (3, 8, 8)
    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 10, 1), nn.Linear(10, 3)
        self.slide = nn.Conv1d(1, 1, 5, self.stride, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        gate = torch.sigmoid(self.slide(x.mean((2, 3)).unsqueeze(1))).squeeze(1)
        return self.head(torch.relu(self.b(x * self.widened(gate)[..., None, None])).mean((2, 3)))

    def widened(self, gate: torch.Tensor) -> torch.Tensor:
        return gate


class Halved(Gated):
    """Every gate is of two channels."""

    stride = 2

    def widened(self, gate: torch.Tensor) -> torch.Tensor:
        return torch.cat([gate, gate], 1)


def test_channels_that_a_filter_slides_over_are_cut_and_inexact(tmp_path):
    network, _ = nets.load(Gated, tmp_path)
    analysis = analyse(network, network.sample_shapes)
    assert list(analysis.kept_because) == ["/head/Gemm"]
    groups = {group.num_units: group for group in analysis.groups}
    assert not groups[24].exact and "Conv '/slide/Conv' slides" in groups[24].inexact_because and groups[10].exact
    made = cut(network, analysis, nets.random_kept(analysis.groups, 0.4))
    assert made.network.tensors["slide.weight"].shape == (1, 1, 5) and not made.exact
    write_onnx(made.network, tmp_path / "cut.onnx")
    feeds = nets.samples(network)
    wanted, got = nets.reference(tmp_path / "cut.onnx", feeds)[0], run(made.network, feeds)["y"]
    assert np.isfinite(got).all() and nets.difference(wanted, got) < 1e-5


def test_the_filter_itself_is_not_refitted_to_positions_that_are_gone(tmp_path):
    network, _ = nets.load(Gated, tmp_path)
    analysis, feeds = analyse(network, network.sample_shapes), nets.samples(network, 32)
    made = cut(network, analysis, nets.random_kept(analysis.groups, 0.4)).network
    fitted, repair = reconstruct(network, made, feeds, refit=True, batchnorm=True)
    assert "/slide/Conv" not in repair.refitted and "/b/Conv" in repair.refitted
    wanted, before, after = (run(one, feeds)["y"] for one in (network, made, fitted))
    assert np.abs(after - wanted).mean() < np.abs(before - wanted).mean()


def test_channels_that_it_takes_by_twos_stay(tmp_path):
    network, _ = nets.load(Halved, tmp_path)
    analysis = analyse(network, network.sample_shapes)
    assert "/a/Conv" in analysis.kept_because and "/b/Conv" not in analysis.kept_because
