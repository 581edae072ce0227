"""Surgery against the masked upload, with random channels: the smallest ones would hide mistakes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph import nets
from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut, masked, take, weight_cuts, zero


def masked_upload(path, rows):
    """The plain second version: the uploaded file with what the report names set to zero, element by element."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    alias = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity" and n.input[0] in tensors}
    for number, row in enumerate(rows):
        array = numpy_helper.to_array(tensors[row.name]).copy()
        for axis in row.zero:
            kept = row.axes[axis]
            parts = kept if isinstance(kept[0], list) else [kept] * 1
            size = len(array) // len(parts)
            for index in np.ndindex(array.shape):
                keep = parts[index[0] // size] if len(parts) > 1 else parts[0]
                if index[int(axis)] not in keep:
                    array[index] = 0
        if row.nodes is None:
            tensors[row.name].CopyFrom(numpy_helper.from_array(array, row.name))
            continue
        model.graph.initializer.append(numpy_helper.from_array(array, f"copy{number}"))
        for node in model.graph.node:
            if node.name in row.nodes:
                for slot, name in enumerate(node.input):
                    if alias.get(name, name) == row.name:
                        node.input[slot] = f"copy{number}"
    return model


def compare(path, cut_network, rows, feeds, folder):
    out = folder / "cut.onnx"
    write_onnx(cut_network, out)
    wanted, got = nets.reference(masked_upload(path, rows), feeds), nets.reference(out, feeds)
    whole = nets.reference(path, feeds)
    error = max(nets.difference(a, b) for a, b in zip(wanted, got, strict=True))
    control = max(nets.difference(a, b) for a, b in zip(whole, got, strict=True))
    return error, control


class TestCut:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("keep_batchnorm", [False, True])
    @pytest.mark.parametrize("share", [0.7, 0.3])
    def test_random_channels_computes_the_masked_upload(self, kind, keep_batchnorm, share, tmp_path):
        network, path = nets.load(kind, tmp_path, keep_batchnorm=keep_batchnorm)
        analysis = analyse(network, network.sample_shapes)
        kept = nets.random_kept(analysis.groups, share)
        result = cut(network, analysis, kept)
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)
        assert (
            count(result.network, network.sample_shapes).num_params < count(network, network.sample_shapes).num_params
        )

    @pytest.mark.parametrize(
        "kind",
        [
            nets.Plain,
            nets.Residual,
            nets.Dense,
            nets.Shuffle,
            nets.ShuffleStem,
            nets.ShuffleSplit,
            nets.Shared,
            nets.Nhwc,
        ],
    )
    def test_three_cuts_in_turn_refer_to_the_upload(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        current = network
        for step in range(3):
            analysis = analyse(current, current.sample_shapes)
            result = cut(current, analysis, nets.random_kept(analysis.groups, 0.8, seed=step))
            current = result.network
        error, control = compare(path, current, weight_cuts(current), nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-3, (error, control)

    def test_one_unit_left_everywhere_still_runs(self, tmp_path):
        network, path = nets.load(nets.Residual, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, {group.id: [group.num_units - 1] for group in analysis.groups})
        error, _ = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5

    def test_the_network_that_was_cut_is_unchanged(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        before = {name: array.copy() for name, array in network.tensors.items()}
        analysis = analyse(network, network.sample_shapes)
        cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        assert all((network.tensors[name] == array).all() for name, array in before.items())
        assert weight_cuts(network) == []

    def test_ports_names_and_opset_are_the_users(self, tmp_path):
        network, _ = nets.load(nets.Dense, tmp_path, opset=13)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        assert (result.network.inputs, result.network.outputs) == (network.inputs, network.outputs)
        assert result.network.opset == 13
        assert [node.name for node in result.network.nodes if node.op == "Conv"] == [
            node.name for node in network.nodes if node.op == "Conv"
        ]

    def test_no_unit_left_is_refused(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        with pytest.raises(GraphError, match="at least one"):
            cut(network, analysis, {0: []})

    def test_unequal_numbers_per_row_are_refused(self, tmp_path):
        network, _ = nets.load(nets.Shuffle, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        group = next(group for group in analysis.groups if len(group.partition.sizes) > 1)
        with pytest.raises(GraphError, match="unequal numbers"):
            cut(network, analysis, {group.id: np.arange(group.num_units - 1)})


WIDTH = [
    helper.make_node("MatMul", ["x", "A"], ["h"], name="stream"),
    helper.make_node("Shape", ["h"], ["shape"]),
    helper.make_node("Gather", ["shape", "one"], ["width"], axis=0),
    helper.make_node("Unsqueeze", ["width", "zero"], ["widths"]),
]
#: What reads a number that was computed from the width of `h`, and has nothing else to do with it.
READERS = {
    "Reshape": [
        helper.make_node("Concat", ["free", "two", "widths"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["k", "sizes"], ["r"]),
        helper.make_node("ReduceSum", ["r", "ones"], ["part"], keepdims=0),
    ],
    "Slice": [helper.make_node("Slice", ["k", "zero", "widths", "ones"], ["part"])],
    "Split": [
        helper.make_node("Concat", ["widths", "widths"], ["sizes"], axis=0),
        helper.make_node("Split", ["k", "sizes"], ["part", "rest"], axis=1),
    ],
    "Expand": [
        helper.make_node("Concat", ["ones", "widths"], ["sizes"], axis=0),
        helper.make_node("ReduceSum", ["k", "ones"], ["total"]),
        helper.make_node("Expand", ["total", "sizes"], ["part"]),
    ],
}


def computed_width(reader, path):
    """`y = x A B + part(x K) C`, where `part` takes or makes as many columns as A has."""
    shapes = {"A": (6, 8), "K": (6, 16), "B": (8, 5), "C": (8, 5)}
    arrays = {
        name: np.random.default_rng(2).standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    numbers = {
        "one": np.array(1),
        "zero": np.array([0]),
        "ones": np.array([1]),
        "free": np.array([-1]),
        "two": np.array([2]),
    }
    nodes = [
        *WIDTH,
        helper.make_node("MatMul", ["x", "K"], ["k"], name="packed"),
        *READERS[reader],
        helper.make_node("MatMul", ["h", "B"], ["left"]),
        helper.make_node("MatMul", ["part", "C"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 6), ("y", 5))]
    tensors = [numpy_helper.from_array(array, name) for name, array in (arrays | numbers).items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return import_model(path, "onnx", None)[0]


class TestNumbersComputedFromAWidth:
    @pytest.mark.parametrize("reader", READERS)
    def test_stay_what_they_were_where_something_else_is_measured_by_them(self, reader, tmp_path):
        path = tmp_path / "m.onnx"
        network = computed_width(reader, path)
        analysis = analyse(network, network.sample_shapes)
        stream = next(group for group in analysis.groups if group.layers == ("stream",))
        made = cut(network, analysis, {stream.id: [0, 3, 6]})
        error, control = compare(path, made.network, made.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-2
        assert made.network.tensors["A"].shape == (6, 3) and made.network.tensors["K"].shape == (6, 16)


class TestMasked:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_consumers_slices_are_those_of_the_report(self, kind, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        kept = nets.random_kept(analysis.groups, 0.5)
        rows = cut(network, analysis, kept).weights
        feeds = nets.samples(network)
        write_onnx(masked(network, analysis, kept), tmp_path / "masked.onnx")
        for a, b in zip(
            nets.reference(masked_upload(path, rows), feeds),
            nets.reference(tmp_path / "masked.onnx", feeds),
            strict=True,
        ):
            assert nets.difference(a, b) < 1e-6


class TestTakeAndZero:
    def test_parts_of_axis_0_keep_their_own_members(self):
        array = np.arange(24).reshape(4, 3, 2)
        positions = np.array([[0, 2], [2, 1]])
        taken = take(array, {1: positions, 0: np.array([0, 3])})
        assert (taken[0] == array[0][[0, 2]]).all() and (taken[1] == array[3][[2, 1]]).all()

    def test_zero_per_part_leaves_the_other_part(self):
        array = np.ones((4, 3))
        gone = np.array([[True, False, False], [False, False, True]])
        result = zero(array, 1, gone)
        assert result.sum() == 8 and result[:2, 0].sum() == 0 and result[2:, 2].sum() == 0 and array.sum() == 12
