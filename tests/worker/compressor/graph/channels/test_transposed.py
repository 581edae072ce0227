"""Transposed convolutions, whose weight has its inputs along axis 0: plain, in groups, and for each channel by itself."""

import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class Upward(nn.Module):
    """A convolution, a transposed one in groups, and a convolution; `per_group` outputs of each group."""

    shape = (3, 5, 5)
    groups, per_group = 3, 4

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, self.groups * self.per_group, 3, 2, groups=self.groups)
        self.b, self.head = nn.Conv2d(self.groups * self.per_group, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.a(x))))
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class Wider(Upward):
    groups, per_group = 2, 8


class Each(Upward):
    groups, per_group = 12, 1


class EachTwice(Upward):
    groups, per_group = 12, 2


ALL = [Upward, Wider, Each, EachTwice]


class TestTransposed:
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("share", [0.7, 0.4])
    def test_random_channels_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        feeds = nets.samples(network)
        error, control = compare(path, result.network, result.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, feeds).vacuous

    @pytest.mark.parametrize(("kind", "blocks"), [(Upward, [4] * 3), (Wider, [8] * 2)])
    def test_groups_have_channels_of_their_own_equal_numbers_of_them(self, kind, blocks, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        groups = {group.layers: group for group in analyse(network, network.sample_shapes).groups}
        assert groups["/up/ConvTranspose",].partition.sizes.tolist() == blocks
        assert groups["/a/Conv",].partition.sizes.tolist() == [12 // kind.groups] * kind.groups

    @pytest.mark.parametrize("kind", [Each, EachTwice])
    def test_depthwise_goes_with_its_channel(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(group for group in analysis.groups if "/a/Conv" in group.layers)
        result = cut(network, analysis, {group.id: [1, 5, 6]})
        node = next(node for node in result.network.nodes if node.op == "ConvTranspose")
        before, now = (count(net, network.sample_shapes).layers[1].macs for net in (network, result.network))
        assert node.attributes["group"] == 3 and now * 4 == before
