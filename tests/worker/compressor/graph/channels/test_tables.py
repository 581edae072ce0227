"""Layers that read tables of constants, learnt queries and positions say, and weights that are sums of others."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class Queried(nn.Module):
    """Learnt queries ask two heads, and a bias for each pair comes from a perceptron on coordinates."""

    shape = (7, 6)
    layers = 4  # q with k, v, the perceptron's first

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 12))
        self.register_buffer("table", torch.randn(5, 7, 2))
        self.q, self.k, self.v, self.out = nn.Linear(12, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.a, self.b = nn.Linear(2, 10), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(self.queries).view(1, 5, 2, 8).transpose(1, 2)
        k, v = (layer(x).view(-1, 7, 2, 8).transpose(1, 2) for layer in (self.k, self.v))
        bias = self.b(functional.relu(self.a(self.table))).permute(2, 0, 1)
        return self.out(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 5, 16))


class LowRank(nn.Module):
    """A weight to which the product of two narrow ones is added."""

    shape = (5, 6)
    layers = 2

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(functional.relu(self.a(x)), self.b.weight + self.up @ self.down, self.b.bias)
        return self.head(functional.relu(x))


@pytest.mark.parametrize("kind", [Queried, LowRank], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_layers_that_read_constants_are_cut_exactly(kind, share, tmp_path):
    network, path = nets.load(kind, tmp_path)
    analysis = analyse(network, network.sample_shapes)
    layers = {name for group in analysis.groups for name in group.layers if "Add" not in name}
    assert len(layers) >= kind.layers
    made = cut(network, analysis, nets.random_kept([group for group in analysis.groups if group.exact], share))
    feeds = nets.samples(network)
    error, control = compare(path, made.network, made.weights, feeds, tmp_path)
    assert error < 1e-5 and control > 1e-3
    assert not prove(network, made, analysis, feeds).vacuous
