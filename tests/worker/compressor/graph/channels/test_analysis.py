import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.importers import import_model


def sizes(network):
    return {group.layers: group.num_units for group in analyse(network, network.sample_shapes).groups}


class TestGroups:
    def test_plain_network_has_one_group_per_layer_but_the_last(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        assert sizes(network) == {("/conv1/Conv",): 8, ("/conv2/Conv",): 12, ("/fc1/Gemm",): 16}

    def test_additions_couple_all_that_they_join(self, tmp_path):
        network, _ = nets.load(nets.Residual, tmp_path)
        found = sizes(network)
        assert found[("/stem/Conv", "/a2/Conv")] == 8 and found[("/b2/Conv", "/skip/Conv")] == 16
        assert found[("/a1/Conv",)] == 6 and found[("/b1/Conv",)] == 10

    def test_concatenated_branches_stay_independent(self, tmp_path):
        network, _ = nets.load(nets.Dense, tmp_path)
        found = sizes(network)
        assert found[("/b/Conv",)] == 10 and ("/a/Conv", "/b/Conv") not in found

    def test_a_part_of_a_split_keeps_one_channel(self, tmp_path):
        network, _ = nets.load(nets.Dense, tmp_path)
        # x[:, :2] of six channels must not become empty, so one of its two stays
        assert sizes(network)[("/a/Conv",)] == 5

    def test_depthwise_follows_and_gate_is_coupled_to_what_it_scales(self, tmp_path):
        network, _ = nets.load(nets.Separable, tmp_path)
        found = sizes(network)
        assert found == {("/expand/Conv", "/up/Conv"): 12, ("/down/Conv",): 6}

    def test_grouped_convolution_and_shuffle_give_blocks(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path)
        groups = {group.layers: group for group in analyse(network, network.sample_shapes).groups}
        shuffled = groups[("/a/Conv",)]
        assert shuffled.num_units == 24 and shuffled.partition.sizes.tolist() == [6, 6, 6, 6]
        assert groups[("/b/Conv",)].partition.sizes.tolist() == [8, 8]

    def test_a_stem_beside_grouped_branches_goes_with_more_of_them(self, tmp_path):
        network, _ = nets.load(nets.ShuffleStem, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert not analysis.kept_because.keys() & {"/stem/Conv", "/a/Conv", "/c/Conv", "/d/Conv", "/e/Conv"}
        outer = next(group for group in analysis.groups if "/stem/Conv" in group.layers)
        assert {(int(bundle.sizes.sum()), bundle.times) for bundle in outer.partition.bundles} == {(4, 8), (16, 2)}

    def test_halves_that_are_interleaved_again_do_not_bind_their_channels(self, tmp_path):
        network, _ = nets.load(nets.ShuffleSplit, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert list(analysis.kept_because) == ["/head/Gemm"]
        assert all(int(bundle.sizes.sum()) == 1 for group in analysis.groups for bundle in group.partition.bundles)

    def test_picked_and_split_channels_stay_independent(self, tmp_path):
        network, _ = nets.load(nets.Permuted, tmp_path)
        # one channel stays in each half of the split
        assert sizes(network) == {("/a/Conv",): 10, ("/b/Conv",): 5, ("/c/Conv",): 4}

    def test_flatten_repeats_a_channel_for_each_position(self, tmp_path):
        for kind in (nets.Plain, nets.Nhwc):
            network, _ = nets.load(kind, tmp_path)
            pieces = [
                s for g in analyse(network, network.sample_shapes).groups for s in g.slices if s.role == "consumes"
            ]
            flat = next(piece for piece in pieces if piece.units.size > 40)
            counts = np.bincount(flat.units)
            assert len(set(counts.tolist())) == 1 and counts[0] > 1
            assert (flat.units[: counts[0]] == 0).all() == (kind is nets.Plain), "NCHW: by channel; NHWC: by position"

    def test_slices_name_tensor_axis_and_role(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path, keep_batchnorm=True)
        group = next(g for g in analyse(network, network.sample_shapes).groups if g.layers == ("/conv1/Conv",))
        found = {(piece.tensor, piece.axis, piece.role) for piece in group.slices}
        assert found == {
            ("conv1.weight", 0, "produces"),
            ("conv2.weight", 1, "consumes"),
            *{(f"bn1.{name}", 0, "follows") for name in ("weight", "bias", "running_mean", "running_var")},
        }
        assert all((piece.units == np.arange(8)).all() for piece in group.slices)

    def test_equal_vectors_that_were_merged_bind_nothing(self, tmp_path):
        network, _ = nets.load(nets.Shared, tmp_path)
        found = sizes(network)
        # the convolution that is used twice binds its input to its output; the last one is free
        assert found == {("/stem/Conv", "/twice/Conv", "/twice_1/Conv"): 8, ("/last/Conv",): 8}

    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_every_layer_is_prunable_or_says_why_not(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        touching = {piece.node for group in analysis.groups for piece in group.slices if piece.role != "consumes"}
        for node in network.nodes:
            if node.op in ("Conv", "Gemm"):
                assert (node.name in touching) != (node.name in analysis.kept_because), node.name


class TestPins:
    def test_output_layer_says_which_output_it_writes(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        assert analyse(network, network.sample_shapes).kept_because == {"/fc2/Gemm": "it writes the model output 'y'"}

    def test_what_is_added_to_the_input_stays(self, tmp_path):
        weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
            helper.make_node("Add", ["a", "x"], ["b"], name="add"),
            helper.make_node("GlobalAveragePool", ["b"], ["y"], name="pool"),
        ]
        port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, None, None])  # noqa: E731
        graph = helper.make_graph(nodes, "g", [port("x")], [port("y")], [weight])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
        )
        network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
        analysis = analyse(network, network.sample_shapes)
        assert analysis.groups == () and "'add'" in analysis.kept_because["conv"]

    def test_softmax_over_channels_is_inexact(self, tmp_path):
        weights = [
            numpy_helper.from_array(np.random.default_rng(0).random((4, 6)).astype(np.float32), "a"),
            numpy_helper.from_array(np.random.default_rng(1).random((6, 3)).astype(np.float32), "b"),
        ]
        nodes = [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Softmax", ["h"], ["s"], name="soft"),
            helper.make_node("MatMul", ["s", "b"], ["y"], name="second"),
        ]
        port = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])  # noqa: E731
        graph = helper.make_graph(nodes, "g", [port("x", 4)], [port("y", 3)], weights)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx"
        )
        network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
        (group,) = analyse(network, network.sample_shapes).groups
        assert group.num_units == 6 and not group.exact and "Softmax 'soft'" in group.inexact_because

    def test_copies_that_take_turns_stay(self, tmp_path):
        """Which copy of a channel lies where would depend on which others go."""

        class Copies(nn.Module):
            shape = (3, 5, 5)

            def __init__(self):
                super().__init__()
                self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)

            def forward(self, x):
                x = torch.relu(self.stem(x))
                x = torch.cat([x, x[:, [3, 2, 1, 0, 7, 6, 5, 4]]], 1)
                n, c, h, w = x.shape
                pairs = x.view(n, 2, c // 2, h, w).transpose(1, 2)  # read twice, so that it cannot become a Gather
                return self.last(pairs.reshape(n, c, h, w) + pairs.mean((1, 2), keepdim=True)[:, 0]).flatten(1)

        network, _ = nets.load(Copies, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert not analysis.groups
        assert "several copies" in next(why for name, why in analysis.kept_because.items() if "stem" in name)
