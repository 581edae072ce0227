"""Channels on their way through what networks on pictures do: pixel shuffles, gates, rolls by nothing, learnt queries."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class Upscaled(nn.Module):
    """A pixel shuffle, an activation, and only then the convolution that slides over rows and columns."""

    shape = (3, 6, 6)
    layers = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 24, 1), nn.Conv2d(6, 3, 3)

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(x, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.leaky_relu(self.shuffle(self.wide(functional.relu(self.stem(x))))))


class UpscaledByHand(Upscaled):
    """The same shuffle in a reshape, a transpose and a reshape."""

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 6, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(-1, 6, 8, 8)


class Gated(nn.Module):
    """A map of one channel scales all channels of another layer, which it does not bind to each other."""

    shape = (3, 6, 6)
    layers = 1

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        return self.head(x * self.gate(x).sigmoid())


class RolledByNothing(nn.Module):
    """Windows that are not shifted along an axis: a slice without elements is put before the rest."""

    shape = (3, 6, 6)
    layers = 1

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.stem(x)[:, :, 6:], functional.relu(self.stem(x))], 2))


class Attended(nn.Module):
    """Learnt queries, one sequence for all samples, so that every sample's lie along the first axis."""

    shape = (4, 6)
    layers = 3

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 1, 12))
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1, 2, 4).permute(1, 2, 0, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = x.transpose(0, 1)
        queries = self.q(self.queries.expand(-1, x.shape[0], -1))
        q, k, v = self.heads(queries), self.heads(self.k(memory)), self.heads(self.v(memory))
        found = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(found.permute(2, 0, 1, 3).reshape(-1, 8)).reshape(5, -1, 3)


class Aggregated(nn.Module):
    """A convolution of length 1 along the channels: over maps that lie where its own channels do."""

    shape = (3, 6, 6)
    layers = 2

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.mix, self.head = nn.Conv1d(2, 1, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([functional.relu(layer(x)).mean((2, 3)) for layer in (self.a, self.b)], 1)
        return self.head(self.mix(both).squeeze(1))


KINDS = [Upscaled, UpscaledByHand, Gated, RolledByNothing, Attended, Aggregated]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestPictures:
    def test_every_layer_but_the_last_is_cut_exactly(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert sum(len(group.layers) for group in analysis.groups) == kind.layers
        made = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        feeds = nets.samples(network)
        error, control = compare(path, made.network, made.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3
        assert not prove(network, made, analysis, feeds).vacuous

    def test_of_every_layer_and_head_something_stays(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        rng = np.random.default_rng(1)
        made = cut(network, analysis, {group.id: group.partition.draw(0.0, rng) for group in analysis.groups})
        assert all(tensor.size for tensor in made.network.tensors.values() if tensor.dtype.kind == "f")
        write_onnx(made.network, tmp_path / "narrow.onnx")
        assert all(np.abs(array).max() > 0 for array in nets.reference(tmp_path / "narrow.onnx", nets.samples(network)))
