"""Weights that the file keeps in another form: half precision behind Cast, other shapes behind Reshape."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut

SHAPES = {"a.w": (12, 3, 3, 3), "a.b": (12,), "b.w": (8, 12, 3, 3), "b.b": (8,), "c.w": (4, 8), "c.b": (4,)}


def halved(name, array, graph):
    graph.node.append(helper.make_node("Cast", [name], [f"{name}.read"], to=TensorProto.FLOAT))
    return array.astype(np.float16)


def flattened(name, array, graph):
    graph.initializer.append(numpy_helper.from_array(np.array(array.shape), f"{name}.shape"))
    graph.node.append(helper.make_node("Reshape", [name, f"{name}.shape"], [f"{name}.read"]))
    return array.reshape(len(array), -1)


def network_with(form, folder):
    """Two convolutions and a linear layer; each weight goes through nodes that `form` adds."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "g", [], [])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 7, 7]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    for name, shape in SHAPES.items():
        array = form(name, rng.standard_normal(shape).astype(np.float32) / 4, graph)
        graph.initializer.append(numpy_helper.from_array(array, name))
    graph.node.extend([
        helper.make_node("Conv", ["x", "a.w.read", "a.b.read"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "b.w.read", "b.b.read"], ["b"], name="b"),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("GlobalAveragePool", ["br"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "c.w.read", "c.b.read"], ["y"], name="c", transB=1),
    ])  # fmt: skip
    path = folder / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return import_model(path, "onnx", None)[0], path


class TestStoredWeights:
    @pytest.mark.parametrize("form", [halved, flattened])
    def test_random_channels_computes_the_masked_upload(self, form, tmp_path):
        network, path = network_with(form, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert sorted(group.num_units for group in analysis.groups) == [8, 12] and all(g.exact for g in analysis.groups)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        assert result.network.tensors.keys() == network.tensors.keys(), "shapes are rewritten under their names"
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-5 and control > 1e-2, (error, control)
