import math

import pytest

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import head_nets
from tests.worker.compressor.graph.channels.head_nets import Heads
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

ATTENTION = {
    "joined": Heads(),
    "apart": Heads(rank=4),
    "shared keys": Heads(num_keys=2),
    "shared keys apart": Heads(num_keys=2, rank=4),
    "one key": Heads(num_keys=1),
    "short values": Heads(value=6),
    "scaled": Heads(attributes={"scale": 0.3}),
    "causal": Heads(attributes={"is_causal": 1}),
    "capped and masked": Heads(attributes={"softcap": 2.0}, mask=True),
    "version 23": Heads(opset=23),
}
ROTARY = {
    "halves": Heads(turned={}),
    "by position": Heads(turned={}, by_position=True, num_keys=2),
    "neighbours": Heads(turned={"interleaved": 1}, rank=4),
    "a part": Heads(turned={"rotary_embedding_dim": 4}, rank=4, num_keys=2),
    "a part by position": Heads(turned={"rotary_embedding_dim": 4}, by_position=True),
}
ALL = ATTENTION | ROTARY


class TestRandomChannels:
    @pytest.mark.parametrize("kind", ALL.values(), ids=ALL.keys())
    @pytest.mark.parametrize("share", [0.7, 0.4])
    def test_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = head_nets.build(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert all(group.exact for group in analysis.groups)
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        feeds = nets.samples(network)
        error, control = compare(path, result.network, result.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, feeds).vacuous

    @pytest.mark.parametrize("kind", ALL.values(), ids=ALL.keys())
    def test_one_of_each_block_is_left_and_runs_at_other_batch_sizes(self, kind, tmp_path):
        network, path = head_nets.build(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.0))
        compare(path, result.network, [], nets.samples(network, 3), tmp_path)


def groups_of(kind, folder):
    """Groups of the queries' and of the values' projections."""
    network, _ = head_nets.build(kind, folder)
    analysis = analyse(network, network.sample_shapes)
    maker = {node.outputs[0]: node for node in network.nodes}
    found = []
    for slot in (0, 2):
        node = next(node for node in network.nodes if node.op == "Attention")
        while node.op != "MatMul":
            node, slot = maker[node.inputs[slot]], 0
        found.append(next(group for group in analysis.groups if node.name in group.layers))
    return found


class TestAttend:
    def test_heads_get_narrower_alike_and_queries_with_their_keys(self, tmp_path):
        inner, values = groups_of(Heads(value=6), tmp_path)
        assert len(inner.layers) == 2 and inner.partition.sizes.tolist() == [8] * 4 and inner.contracted
        assert len(values.layers) == 1 and values.partition.sizes.tolist() == [6] * 4 and not values.contracted

    @pytest.mark.parametrize("rank", [3, 4])
    def test_shared_keys_have_a_unit_for_each_key(self, rank, tmp_path):
        inner, values = groups_of(Heads(num_keys=2, rank=rank), tmp_path)
        assert inner.num_units == values.num_units == 16 and inner.partition.sizes.tolist() == [8] * 2

    def test_narrower_heads_keep_the_scale_of_whole_ones(self, tmp_path):
        for number, kind in enumerate([Heads(), Heads(attributes={"scale": 0.3})]):
            network, _ = head_nets.build(kind, tmp_path)
            analysis = analyse(network, network.sample_shapes)
            smaller = cut(network, analysis, nets.random_kept(analysis.groups, 0.5)).network
            node = next(node for node in smaller.nodes if node.op == "Attention")
            assert math.isclose(node.attributes["scale"], [1 / math.sqrt(8), 0.3][number], rel_tol=1e-6)

    def test_whole_keys_leave_the_scale_unsaid(self, tmp_path):
        network, _ = head_nets.build(Heads(), tmp_path)
        analysis = analyse(network, network.sample_shapes)
        others = [group for group in analysis.groups if not group.contracted]
        smaller = cut(network, analysis, nets.random_kept(others, 0.5)).network
        assert "scale" not in next(node for node in smaller.nodes if node.op == "Attention").attributes

    def test_a_past_from_outside_keeps_them_all(self, tmp_path):
        network, _ = head_nets.build(Heads(num_heads=2, num_keys=2, past=True), tmp_path)
        analysis = analyse(network, network.sample_shapes)
        kept = [name for name, why in analysis.kept_because.items() if "not narrowed" in why and "matmul" in name]
        assert len(kept) == 3


class TestRotate:
    @pytest.mark.parametrize("interleaved", [0, 1])
    def test_a_pair_goes_from_every_head(self, interleaved, tmp_path):
        inner, _ = groups_of(Heads(turned={"interleaved": interleaved}), tmp_path)
        assert inner.num_units == 4 and inner.contracted

    def test_one_pair_is_left_of_the_part_that_is_turned(self, tmp_path):
        network, _ = head_nets.build(Heads(turned={"rotary_embedding_dim": 4}, by_position=True), tmp_path)
        analysis = analyse(network, network.sample_shapes)
        inner = next(group for group in analysis.groups if group.contracted)
        smaller = cut(network, analysis, nets.random_kept([inner], 0.0)).network
        turned = [node.attributes["rotary_embedding_dim"] for node in smaller.nodes if node.op == "RotaryEmbedding"]
        assert turned == [2, 2]
