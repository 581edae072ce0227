import pytest

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import weighing_nets
from tests.worker.compressor.graph.channels.weighing_nets import einsum, matrices
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


class TestRandomChannels:
    @pytest.mark.parametrize("layers", weighing_nets.ALL, ids=lambda layers: layers.__name__)
    @pytest.mark.parametrize("share", [0.7, 0.4])
    def test_computes_the_masked_upload(self, layers, share, tmp_path):
        network, path = weighing_nets.load(layers, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert all(group.exact for group in analysis.groups)
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        feeds = nets.samples(network)
        error, control = compare(path, result.network, result.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, feeds).vacuous

    @pytest.mark.parametrize("layers", weighing_nets.ALL, ids=lambda layers: layers.__name__)
    def test_one_of_each_block_is_left_and_runs_at_other_batch_sizes(self, layers, tmp_path):
        network, path = weighing_nets.load(layers, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.0))
        compare(path, result.network, [], nets.samples(network, 3), tmp_path)
        multiplied = {"MatMul", "Einsum"}
        whole, narrow = (count(net, network.sample_shapes).layers for net in (network, result.network))
        inner = [(a, b) for a, b in zip(whole, narrow, strict=True) if a.op in multiplied and a.macs]
        assert sum(b.macs for _, b in inner) < 0.2 * sum(a.macs for a, _ in inner)


def groups_of(layers, folder):
    network, _ = weighing_nets.load(layers, folder)
    return {group.layers: group for group in analyse(network, network.sample_shapes).groups}


class TestWeigh:
    def test_a_matrix_for_each_head_has_channels_of_its_own(self, tmp_path):
        groups = groups_of(weighing_nets.heads_first, tmp_path)
        inner = groups["/einsum2", "/einsum3"]
        assert inner.partition.sizes.tolist() == [weighing_nets.INNER] * weighing_nets.HEADS
        assert inner.contracted and not groups["/einsum4",].contracted

    def test_an_axis_of_heads_that_a_matrix_makes_is_one_of_whole_heads(self, tmp_path):
        groups = groups_of(weighing_nets.heads_last, tmp_path)
        assert groups["/einsum2", "/einsum4", "/einsum6"].num_units == weighing_nets.HEADS
        assert groups["/einsum2", "/einsum4"].num_units == groups["/einsum6",].num_units == weighing_nets.INNER

    def test_positions_that_a_constant_reads_have_to_stay(self, tmp_path):
        network, _ = weighing_nets.load(over_time, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        weight = next(node for node in network.nodes if node.op == "Einsum").inputs[1]
        assert network.tensors[weight].shape == (6, 6) and result.network.tensors[weight].shape[0] == 6


def over_time(net, x):
    return einsum(net, "btc,ts->bsc", x, matrices(net, 6, 6)), 16


def three_factors(net, x):
    return einsum(net, "btc,btc,cd->btd", x, x, matrices(net, 16, 16)), 16


def diagonal(net, x):
    square = net.node("Mul", net.node("Unsqueeze", x, net.constant([2])), matrices(net, 6, 6, 1))
    return einsum(net, "bttc->btc", square), 16


def sum_and_transposition(net, x):
    y = einsum(net, "btcd->bdt", net.reshape(x, 0, 0, 4, 4))
    return net.node("Transpose", y, perm=[0, 2, 1]), 4


class TestEinsum:
    @pytest.mark.parametrize("layers", [three_factors, diagonal, sum_and_transposition])
    def test_forms_without_a_rule_keep_their_channels(self, layers, tmp_path):
        network, _ = weighing_nets.load(layers, tmp_path)
        assert "Einsum" in analyse(network, network.sample_shapes).kept_because["/matmul0"]
