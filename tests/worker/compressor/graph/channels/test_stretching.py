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
    """A repeated norm that another reader needs as long as it was."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        norm = a.norm(dim=-1, keepdim=True).expand_as(a)
        return self.head(a / norm) + norm.softmax(-1)[:, :3]


class TestRepeatedNorms:
    @pytest.mark.parametrize(("kind", "layers"), [(Cosine, 2), (CosineAttention, 3)])
    def test_get_as_narrow_as_what_they_divide(self, kind, layers, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert sum(len(group.layers) for group in analysis.groups) == layers
        assert all(group.exact for group in analysis.groups)
        rng = np.random.default_rng(1)
        made = cut(network, analysis, {group.id: group.partition.draw(0.5, rng) for group in analysis.groups})
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3

    def test_with_another_reader_stay_as_they_are(self, tmp_path):
        network, _ = nets.load(TwiceRead, tmp_path)
        assert not analyse(network, network.sample_shapes).groups
