"""Norms that are repeated along the channels which they divide."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.surgery import cut


class Cosine(nn.Module):
    """Two linear layers, the cosines between what they make, and one of them normalised as a feature."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = functional.normalize(self.a(x), dim=-1), functional.normalize(self.b(x), dim=-1)
        return self.head(functional.relu(a)) + (a * b).sum(-1, keepdim=True)


class CosineAttention(nn.Module):
    """Two heads whose queries and keys are normalised, as in Swin of the second version."""

    shape = (5, 8)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(-1, 5, 2, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 5, 12))


class TwiceRead(nn.Module):
    """A repeated norm that divides two features."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head, self.tail = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        norm = x.norm(dim=-1, keepdim=True).expand_as(a)
        return self.head(a / norm) + self.tail(self.b(x) / norm)


class Cell(nn.Module):
    """A recurrent cell step by step, whose state begins as zeros: read by a product first."""

    shape = (4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.size(0), 8)
        for step in range(4):
            state = self.cell(x[:, step], state)
        return self.head(state)


class ZeroKeys(nn.Module):
    """A learned key and one of zeros in front of the others, heads side by side in the batch."""

    shape = (5, 8)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
        self.embed, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.out(self.heads(x, x, x, need_weights=False)[0])


class TestRepeatedNorms:
    @pytest.mark.parametrize(("kind", "layers"), [(Cosine, 2), (CosineAttention, 3), (TwiceRead, 2)])
    def test_get_as_narrow_as_what_they_divide(self, kind, layers, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert sum(len(group.layers) for group in analysis.groups) == layers
        assert all(group.exact for group in analysis.groups)
        rng = np.random.default_rng(1)
        made = cut(network, analysis, {group.id: group.partition.draw(0.5, rng) for group in analysis.groups})
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3


class TestZeros:
    @pytest.mark.parametrize("kind", [Cell, ZeroKeys])
    def test_get_as_narrow_as_what_they_meet(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert all(group.exact for group in analysis.groups)
        assert not any("not narrowed" in why for why in analysis.kept_because.values())
        made = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3
