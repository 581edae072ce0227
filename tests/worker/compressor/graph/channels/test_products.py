import pytest

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import attention_nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut


def groups_of(kind, folder, **export):
    network, _ = nets.load(kind, folder, **export)
    return {group.layers: group for group in analyse(network, network.sample_shapes).groups}


class TestAttention:
    @pytest.mark.parametrize("kind", attention_nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("share", [0.7, 0.3])
    def test_random_exact_channels_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        kept = nets.random_kept([group for group in analysis.groups if group.exact], share)
        result = cut(network, analysis, kept)
        feeds = nets.samples(network)
        error, control = compare(path, result.network, result.weights, feeds, tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert not prove(network, result, analysis, feeds).vacuous

    @pytest.mark.parametrize("kind", [attention_nets.Heads, attention_nets.ClassToken], ids=lambda kind: kind.__name__)
    def test_weights_that_are_transposed_in_the_graph_make_exact_groups(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        assert all(group.exact for group in analysis.groups)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)

    @pytest.mark.parametrize("kind", attention_nets.ALL, ids=lambda kind: kind.__name__)
    def test_every_group_cut_at_once_runs_at_other_batch_sizes(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.2))
        compare(path, result.network, [], nets.samples(network, 7), tmp_path)

    def test_heads_get_narrower_alike_and_queries_with_their_keys(self, tmp_path):
        groups = groups_of(attention_nets.Heads, tmp_path)
        inner = groups["/q/MatMul", "/k/MatMul"]
        assert inner.num_units == 32 and inner.partition.sizes.tolist() == [8] * 4 and inner.contracted
        assert not groups["/v/MatMul",].contracted

    def test_shared_keys_have_a_unit_for_each_key(self, tmp_path):
        groups = groups_of(attention_nets.SharedKeys, tmp_path)
        assert groups["/q/MatMul", "/k/MatMul"].num_units == 16
        assert groups_of(attention_nets.OneKey, tmp_path)["/q/MatMul", "/k/MatMul"].num_units == 8

    @pytest.mark.parametrize("kind", [attention_nets.Biased, attention_nets.ClassToken], ids=lambda kind: kind.__name__)
    def test_queries_keys_values_and_the_residual_stream_are_narrowed(self, kind, tmp_path):
        groups = groups_of(kind, tmp_path, keep_batchnorm=True)  # what is computed from constants stays in the graph
        inner = kind.num_heads * kind.inner
        assert sorted(group.num_units for group in groups.values()) == sorted([kind.width, 2 * inner, 24])

    def test_a_scale_for_each_head_leaves_its_channels_independent(self, tmp_path):
        inner = groups_of(attention_nets.Tempered, tmp_path)["/q/MatMul", "/k/MatMul"]
        assert inner.partition.sizes.tolist() == [8] * 4 and inner.exact

    def test_heads_of_two_kinds_side_by_side_get_narrower_alike(self, tmp_path):
        groups = groups_of(attention_nets.Beside, tmp_path)
        both = groups["/v/MatMul", "/other/MatMul"]
        assert both.partition.sizes.tolist() == [8] * 6 and both.exact

    def test_a_bias_that_lies_in_heads_leaves_their_places_independent(self, tmp_path):
        groups = groups_of(attention_nets.Shifted, tmp_path)
        assert groups["/q/MatMul", "/k/MatMul"].num_units == groups["/v/MatMul",].num_units == 8

    def test_a_softmax_over_channels_is_inexact_and_within_heads(self, tmp_path):
        groups = groups_of(attention_nets.Crossed, tmp_path)
        keys = groups["/k/MatMul", "/v/MatMul"]
        assert "Softmax" in keys.inexact_because and keys.partition.sizes.tolist() == [8] * 4
        assert groups["/q/MatMul",].exact and groups["/q/MatMul",].num_units == 32

    def test_what_is_never_zero_is_inexact(self, tmp_path):
        group = groups_of(attention_nets.Positive, tmp_path)["/q/MatMul", "/k/MatMul"]
        assert not group.exact and "never zero" in group.inexact_because

    def test_written_out_normalisation_is_inexact_and_the_rest_is_not(self, tmp_path):
        groups = groups_of(attention_nets.Normed, tmp_path)
        inexact = [group for group in groups.values() if not group.exact]
        assert len(inexact) == 1 and inexact[0].num_units == 16 and "ReduceMean" in inexact[0].inexact_because
