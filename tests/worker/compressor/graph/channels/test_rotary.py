import numpy as np
import pytest
import torch

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import attention_nets, rotary_nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

ALL = [attention_nets.Rotary, *rotary_nets.ALL]


class TestRotary:
    @pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("share", [0.7, 0.4])
    def test_random_pairs_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert all(group.exact for group in analysis.groups)
        feeds = nets.samples(network)
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        error, control = compare(path, result.network, result.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, feeds).vacuous

    @pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
    def test_random_pairs_alone_computes_the_masked_upload(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        turned = [group for group in analysis.groups if group.contracted]
        result = cut(network, analysis, nets.random_kept(turned, 0.5))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-6 and control > 1e-4, (error, control)

    @pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
    def test_pairs_go_from_queries_and_keys_of_all_heads(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        turned = next(group for group in analyse(network, network.sample_shapes).groups if group.contracted)
        pairs_and_others = [2, 4] if kind.__name__ == "Partly" else [4]
        assert turned.layers == ("/q/MatMul", "/k/MatMul")
        assert sorted(turned.partition.sizes.tolist()) == pairs_and_others


class EveryThird(torch.nn.Module):
    """Channels read in turn, and some of them backwards."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = torch.nn.Conv2d(3, 14, 3), torch.nn.Conv2d(4, 5, 1), torch.nn.Conv2d(5, 4, 1)
        self.head = torch.nn.Linear(9, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.head(torch.cat([self.b(x[:, 2::3]).mean((2, 3)), self.c(x[:, 1::3]).mean((2, 3))], 1))


class TestBind:
    def test_runs_of_the_step_go_as_a_whole(self, tmp_path):
        network, path = nets.load(EveryThird, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(group for group in analysis.groups if "/a/Conv" in group.layers)
        produced = next(piece for piece in group.slices if piece.role == "produces")
        assert produced.units.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
        result = cut(network, analysis, {group.id: [0, 3, 4]})
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert np.array_equal(result.lines["/Relu_output_0"][0][1], [0, 1, 2, 9, 10, 11, 12, 13])
