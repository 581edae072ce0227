"""Tile, DepthToSpace, SpaceToDepth, Col2Im, ReverseSequence against onnxruntime, and channels through them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.operators.single import check
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.surgery import cut

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 12, 4, 6)).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


class TestOperators:
    @pytest.mark.parametrize("opset", [6 + 1, 13])
    def test_tile(self, opset, tmp_path):
        check("Tile", [X, ints(1, 2, 1, 3)], opset, tmp_path)

    @pytest.mark.parametrize("attributes", [{}, {"mode": "DCR"}, {"mode": "CRD"}])
    def test_depth_to_space(self, attributes, tmp_path):
        check("DepthToSpace", [X], 11 if attributes else 7, tmp_path, blocksize=2, **attributes)

    @pytest.mark.parametrize("opset", [7, 13])
    def test_space_to_depth(self, opset, tmp_path):
        check("SpaceToDepth", [X], opset, tmp_path, blocksize=2)

    def test_blocks_to_image(self, tmp_path):
        x = RNG.standard_normal((2, 8, 9)).astype(np.float32)
        check("Col2Im", [x, ints(4, 4), ints(2, 2)], 18, tmp_path)

    @pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
    def test_reverse_sequence(self, axes, tmp_path):
        x, lengths = RNG.standard_normal((4, 4, 3)).astype(np.float32), ints(1, 4, 2, 3)
        check("ReverseSequence", [x, lengths], 10, tmp_path, batch_axis=axes[0], time_axis=axes[1])


class Upscaling(nn.Module):
    """A U-Net's way up: resized by factor and to another's size, added, concatenated, shuffled into pixels."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.c, self.d = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = functional.relu(self.a(x))
        b = functional.interpolate(self.b(a), size=a.shape[-2:], mode="bilinear")
        up = functional.interpolate(functional.max_pool2d(a, 2), scale_factor=2.0)
        c = functional.pixel_shuffle(functional.relu(self.c(torch.cat([a + b, up], 1))), 2)
        return self.head(self.d(functional.pad(c, (1, 0, 0, 1), value=0.5)).mean((2, 3)))


class TestSurgery:
    @pytest.mark.parametrize("share", [0.7, 0.3])
    @pytest.mark.parametrize("opset", [11, 17])
    def test_channels_through_resizing_and_shuffling(self, share, opset, tmp_path):
        network, path = nets.load(Upscaling, tmp_path, opset=opset)
        analysis = analyse(network, network.sample_shapes)
        assert {s.tensor for g in analysis.groups for s in g.slices} >= {"a.weight", "c.weight", "d.weight"}
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
