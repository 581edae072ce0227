"""Keras networks as tf2onnx writes them: means over the last axis are poolings, shapes of weights are computed."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut


def normed_network(folder, *heads):
    """A linear layer over [n, 5, 6], LayerNormalization of its 32 channels written out, and two more linear layers.

    The weight of the last one is stored as [*heads, positions, 4].
    """
    rng = np.random.default_rng(0)
    weight = lambda *shape: (rng.standard_normal(shape) / 3).astype(np.float32)  # noqa: E731
    constants = {
        "a": weight(6, 32), "b": weight(1, 32, 12), "c": weight(*heads, 12 // math.prod(heads), 4),
        "scale": weight(32) + 1, "shift": weight(32),
        "epsilon": np.float32(1e-3), "last": np.array([2]), "width": np.array([32]), "c.flat": np.array([12, 4]),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="a"),
        helper.make_node("GlobalAveragePool", ["h"], ["mean"]),
        helper.make_node("Sub", ["h", "mean"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["square"]),
        helper.make_node("GlobalAveragePool", ["square"], ["variance"]),
        helper.make_node("Add", ["variance", "epsilon"], ["more"]),
        helper.make_node("Sqrt", ["more"], ["deviation"]),
        helper.make_node("Div", ["apart", "deviation"], ["normal"]),
        helper.make_node("Mul", ["normal", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Shape", ["b"], ["b.shape"]),
        helper.make_node("Gather", ["b.shape", "last"], ["b.sizes"]),
        helper.make_node("ReduceProd", ["b.sizes"], ["b.columns"]),
        helper.make_node("Concat", ["width", "b.columns"], ["b.flat"], axis=0),
        helper.make_node("Reshape", ["b", "b.flat"], ["b.matrix"]),
        helper.make_node("MatMul", ["shifted", "b.matrix"], ["i"], name="b"),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("Reshape", ["c", "c.flat"], ["c.matrix"]),
        helper.make_node("MatMul", ["r", "c.matrix"], ["y"], name="c"),
    ]
    port = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5, size])  # noqa: E731
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [port("x", 6)], [port("y", 4)], tensors)
    path = folder / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return import_model(path, "onnx", None)[0], path


@pytest.mark.parametrize(("heads", "units"), [((), 12), ((3,), 4)])
def test_layers_are_cut(heads, units, tmp_path):
    """Of a weight stored by heads the report can name the positions of all heads alike."""
    network, path = normed_network(tmp_path, *heads)
    analysis = analyse(network, network.sample_shapes)
    assert {group.num_units: group.exact for group in analysis.groups} == {32: False, units: True}
    kept = nets.random_kept(analysis.groups, 0.5)
    tensors = cut(network, analysis, kept).network.tensors
    assert tensors["b"].shape == (1, 16, 6) and tensors["c"].shape == (*heads, units // 2, 4)
    exact = cut(network, analysis, {group.id: kept[group.id] for group in analysis.groups if group.exact})
    error, control = compare(path, exact.network, exact.weights, nets.samples(network), tmp_path)
    assert error < 1e-5 and control > 1e-2, (error, control)
