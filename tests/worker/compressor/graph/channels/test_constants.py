"""Layers that read constants: learned queries, relative positions, frequencies that are cast first."""

import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels.attention_nets import Heads
from tests.worker.compressor.graph.channels.rotary_nets import Turned
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.surgery import cut


class Relative(Heads):
    """Keys of a table of positions, made by the layer that makes the others (DeBERTa, arXiv 2006.03654)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, self.width))

    def attend(self, x):
        q, k, v = (self.split(layer(x), 4) for layer in (self.q, self.k, self.v))
        places = self.split(self.k(self.table[None]), 4)
        return torch.softmax((q @ k.transpose(-2, -1) + q @ places.transpose(-2, -1)) / 4, -1) @ v


class NormedRelative(Relative):
    """The table is normalised before it is read."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(self.width)

    def attend(self, x):
        q, k, v = (self.split(layer(x), 4) for layer in (self.q, self.k, self.v))
        places = self.split(self.k(self.norm(self.table)[None]), 4)
        return torch.softmax((q @ k.transpose(-2, -1) + q @ places.transpose(-2, -1)) / 4, -1) @ v


class Queries(Heads):
    """Learned queries meet the input (Perceiver, arXiv 2103.03206), and have a perceptron of their own."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 12))
        self.first, self.q = nn.Linear(12, 10), nn.Linear(10, 32)

    def forward(self, x):
        x = self.embed(x)
        q = self.split(self.q(torch.relu(self.first(self.queries[None]))), 4)
        k, v = (self.split(layer(x), 4) for layer in (self.k, self.v))
        made = (torch.softmax(q @ k.transpose(-2, -1) / 3, -1) @ v).transpose(1, 2).reshape(x.size(0), 4, -1)
        return self.head(self.o(made).mean(1))


class CastFrequencies(Turned):
    """Frequencies of another precision, times positions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequency", 10.0 ** -torch.arange(0, 1, 2 / self.inner, dtype=torch.float64))

    def turn(self, x):
        angles = torch.arange(x.size(2)).float()[:, None] * self.frequency.float()
        cos, sin = (torch.cat([t, t], -1) for t in (angles.cos(), angles.sin()))
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


ALL = [Relative, Queries, CastFrequencies]


class TestConstants:
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("share", [0.7, 0.4])
    def test_random_channels_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path, keep_batchnorm=True)  # so that the exporter computes no constants
        analysis = analyse(network, network.sample_shapes)
        assert not analysis.kept_because.keys() - {"/head/Gemm"}
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)

    def test_a_normalised_table_makes_the_residual_stream_inexact_and_leaves_the_rest(self, tmp_path):
        network, _ = nets.load(NormedRelative, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        assert sorted(group.num_units for group in analysis.groups) == [16, 24, 32, 32]
        assert [group.num_units for group in analysis.groups if not group.exact] == [16]

    def test_channels_of_learned_queries_go(self, tmp_path):
        network, _ = nets.load(Queries, tmp_path, keep_batchnorm=True)
        widths = sorted(group.num_units for group in analyse(network, network.sample_shapes).groups)
        assert widths == [10, 12, 16, 16, 32, 32]
