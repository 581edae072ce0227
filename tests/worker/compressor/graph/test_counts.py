import numpy as np
import pytest
import torch

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.cost import CostModel
from worker.compressor.graph.counts import count
from worker.compressor.graph.surgery import cut


def eager_macs(net):
    """The plain second version: forward hooks on the live module."""
    total = 0

    def hook(module, inputs, output):
        nonlocal total
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += output.numel() * module.in_features

    for module in net.modules():
        module.register_forward_hook(hook)
    with torch.no_grad():
        net(torch.zeros(1, *net.shape))
    return total


class TestCount:
    @pytest.mark.parametrize(
        "kind", [nets.Plain, nets.Residual, nets.Dense, nets.Separable, nets.Shuffle, nets.Sequence]
    )
    def test_is_what_live_modules_count(self, kind, tmp_path):
        net = nets.build(kind)
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=True)
        counts = count(network, network.sample_shapes)
        assert counts.macs == eager_macs(net) == sum(layer.macs for layer in counts.layers)
        assert counts.num_params == sum(p.numel() for p in net.parameters())

    def test_shared_tensors_count_once_and_zeros_do_not_count_as_nonzero(self, tmp_path):
        network, _ = nets.load(nets.Shared, tmp_path)
        counts = count(network, network.sample_shapes)
        # one weight serves two convolutions, one vector of zeros serves as the bias of all three layers
        assert counts.num_params == 64 + 576 + 64 + 8 + 27
        assert counts.nonzero_params == counts.num_params - 8

    def test_scalars_are_no_parameters(self, tmp_path):
        network, _ = nets.load(nets.Separable, tmp_path)
        assert all(np.ndim(network.tensors[name]) > 0 for name in network.tensors if "Constant" not in name)
        assert count(network, network.sample_shapes).num_params > 0


class TestCostModel:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("share", [0.6, 0.25])
    def test_foretells_the_counts_of_the_cut_network(self, kind, share, tmp_path):
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        kept = nets.random_kept(analysis.groups, share)
        counts = count(cut(network, analysis, kept).network, network.sample_shapes)
        cost = CostModel(network, analysis, network.sample_shapes)
        assert cost.macs(kept) == counts.macs
        # two cut copies of one vector may come out equal, and are one again
        assert 0 <= cost.num_params(kept) - counts.num_params <= (8 if kind is nets.Shared else 0)

    def test_all_kept_is_the_whole_network(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path)
        analysis, counts = analyse(network, network.sample_shapes), count(network, network.sample_shapes)
        cost = CostModel(network, analysis, network.sample_shapes)
        assert (cost.num_params({}), cost.macs({})) == (counts.num_params, counts.macs)
