"""Whole slices that are picked by number, known or not: heads of packed projections, the last token, shorter sequences."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

RNG = np.random.default_rng(0)


def build(nodes, constants, inputs, folder):
    """A network that ends in `y` [n, ..., 3] from inputs of these types and shapes."""
    arrays = [
        numpy_helper.from_array(
            RNG.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value, name
        )
        for name, value in constants.items()
    ]
    ports = [helper.make_tensor_value_info(name, kind, ["n", *shape]) for name, (kind, shape) in inputs.items()]
    graph = helper.make_graph(nodes, "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], arrays)
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return import_model(path, "onnx", None)[0], path


def a_head_of_a_packed_projection(folder):
    """The last of three heads by GatherND, as torch's newer exporter writes `x[..., -1, :]` (Falcon)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="packed"),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[2, 0, 1, 3]),
        helper.make_node("GatherND", ["c", "last"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["e"], name="one"),
        helper.make_node("Slice", ["b", "none", "two", "axis"], ["f"]),
        helper.make_node("Reshape", ["f", "flat"], ["g"]),
        helper.make_node("MatMul", ["g", "u"], ["h"], name="others"),
        helper.make_node("Squeeze", ["e", "none"], ["i"]),
        helper.make_node("Add", ["h", "i"], ["y"]),
    ]
    numbers = {"shape": [0, 4, 3, 8], "last": [[-1]], "none": [0], "two": [2], "axis": [2], "flat": [0, 4, 16]}
    constants = {"w": (5, 24), "v": (8, 3), "u": (16, 3)} | {name: np.array(value) for name, value in numbers.items()}
    return build(nodes, constants, {"x": (TensorProto.FLOAT, [4, 5])}, folder), 24


def a_token_of_each_sequence(folder):
    """The token whose number is data, of each sample, by GatherND (CLIP)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="made"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GatherND", ["b", "place"], ["c"], batch_dims=1),
        helper.make_node("MatMul", ["c", "v"], ["y"], name="read"),
    ]
    inputs = {"x": (TensorProto.FLOAT, [4, 5]), "place": (TensorProto.INT64, [1])}
    return build(nodes, {"w": (5, 24), "v": (24, 3)}, inputs, folder), 24


def every_second_token(folder):
    """Pairs of tokens are averaged under a window that leaves the channels beside them alone (Funnel)."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="made"),
        helper.make_node("Unsqueeze", ["a", "one"], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 1], strides=[2, 1]),
        helper.make_node("Squeeze", ["c", "one"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="read"),
    ]
    constants = {"w": (5, 24), "v": (24, 3), "one": np.array([1])}
    return build(nodes, constants, {"x": (TensorProto.FLOAT, [4, 5])}, folder), 24


def feeds_of(network, count=3):
    return {
        port.name: RNG.standard_normal((count, *shape)).astype(np.float32)
        if len(shape) > 1
        else RNG.integers(0, 4, (count, 1))
        for port in network.inputs
        for shape in [network.sample_shapes[port.name][1:]]
    }


@pytest.mark.parametrize("kind", [a_head_of_a_packed_projection, a_token_of_each_sequence, every_second_token])
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_channels_of_what_is_picked_are_cut_exactly(kind, share, tmp_path):
    (network, path), num_units = kind(tmp_path)
    analysis = analyse(network, network.sample_shapes)
    (group,) = analysis.groups
    assert group.exact and group.num_units == num_units
    result = cut(network, analysis, nets.random_kept([group], share))
    feeds = feeds_of(network)
    error, control = compare(path, result.network, result.weights, feeds, tmp_path)
    assert error < 1e-5 and control > 1e-3, (error, control)
    assert not prove(network, result, analysis, feeds).vacuous


def test_tokens_picked_of_channels_that_are_never_zero_are_inexact(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="made"),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Gather", ["b", "places"], ["c"], axis=1),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["c", "d"], ["e"], name="scores"),
        helper.make_node("MatMul", ["e", "v"], ["y"], name="read"),
    ]
    constants = {"w": (5, 24), "v": (2, 3), "places": np.array([0, 2])}
    network, _ = build(nodes, constants, {"x": (TensorProto.FLOAT, [4, 5])}, tmp_path)
    (group,) = analyse(network, network.sample_shapes).groups
    assert "never zero" in (group.inexact_because or "")
