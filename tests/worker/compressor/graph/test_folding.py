import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph import nets
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.folding import flush_subnormals, fold_normalisations
from worker.compressor.graph.importers import import_model


def with_norm(tmp_path, layer, weights, *, rank, width, last=False):
    """A layer and a BatchNormalization behind it; `last`: it is the network's output."""
    rng = np.random.default_rng(0)
    vectors = {name: rng.uniform(0.5, 1.5, width) for name in ("scale", "shift", "mean", "variance")}
    arrays = {name: array.astype(np.float32) for name, array in {**weights, **vectors}.items()}
    nodes = [layer, helper.make_node("BatchNormalization", ["made", *vectors], ["y" if last else "n"], "norm")]
    nodes += [] if last else [helper.make_node("Relu", ["n"], ["y"], "relu")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *rank[i]]) for i, name in enumerate("xy")]
    graph = helper.make_graph(
        nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return import_model(path, "onnx", None)[0]


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape)


CASES = {
    "grouped transposed convolution": (
        helper.make_node("ConvTranspose", ["x", "w"], ["made"], "layer", group=2, strides=[2, 2]),
        {"w": normal(4, 3, 2, 2)},
        ([4, 5, 5], [6, 10, 10]),
        6,
    ),
    "grouped convolution": (
        helper.make_node("Conv", ["x", "w", "b"], ["made"], "layer", group=2),
        {"w": normal(6, 2, 3, 3), "b": normal(6)},
        ([4, 5, 5], [6, 3, 3]),
        6,
    ),
    "product": (
        helper.make_node("Gemm", ["x", "w", "b"], ["made"], "layer", beta=0.5, alpha=2.0),
        {"w": normal(4, 6), "b": normal(1, 6)},
        ([4], [6]),
        6,
    ),
    "turned product": (
        helper.make_node("Gemm", ["x", "w"], ["made"], "layer", transB=1),
        {"w": normal(6, 4)},
        ([4], [6]),
        6,
    ),
}


class TestFoldNormalisations:
    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("name", CASES)
    def test_layer_and_norm_become_one_layer(self, tmp_path, name, last):
        layer, weights, ranks, width = CASES[name]
        network = with_norm(tmp_path, layer, weights, rank=ranks, width=width, last=last)
        folded = fold_normalisations(network)
        assert [node.op for node in folded.nodes] == [layer.op_type] + ["Relu"] * (not last)
        assert folded.outputs == network.outputs
        feeds = nets.samples(network)
        assert nets.difference(run(network, feeds)["y"], run(folded, feeds)["y"]) < 1e-6
        assert nets.difference(run(network, feeds)["y"], nets.reference(folded.to_proto(), feeds)[0]) < 1e-5

    def test_whole_network_computes_the_same(self, tmp_path):
        network, path = nets.load(nets.Residual, tmp_path, keep_batchnorm=True)
        folded = fold_normalisations(network)
        assert "BatchNormalization" not in {node.op for node in folded.nodes}
        feeds = nets.samples(network)
        assert nets.difference(nets.reference(path, feeds)[0], run(folded, feeds)["y"]) < 1e-5
        assert "BatchNormalization" in {node.op for node in network.nodes}

    def test_norm_of_a_value_that_others_read_stays(self, tmp_path):
        layer, weights, ranks, width = CASES["grouped convolution"]
        network = with_norm(tmp_path, layer, weights, rank=ranks, width=width)
        relu = next(node for node in network.graph if node.op_type == "Relu")
        convolution = next(node for node in network.graph if node.op_type == "Conv")
        relu.replace_input_with(0, convolution.outputs[0])
        network.graph.outputs.append(network.graph.node(1).outputs[0])
        network.changed()
        assert [node.op for node in fold_normalisations(network).nodes] == ["Conv", "BatchNormalization", "Relu"]


class TestFlushSubnormals:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16])
    def test_subnormals_become_zero_and_all_else_stays(self, tmp_path, dtype):
        network, _ = nets.load(nets.Plain, tmp_path)
        tiny = 1e-310 if dtype is np.float64 else 1e-40
        array = np.array([tiny, -tiny, 0.0, -0.0, 1e-30, 2.0], dtype)
        network.tensors["odd"] = array
        flushed = flush_subnormals(network).tensors
        assert flushed["odd"].dtype == array.dtype
        assert flushed["odd"].astype(np.float64).tolist() == [0, 0, 0, 0, float(dtype(1e-30)), 2]
        assert np.signbit(flushed["odd"].astype(np.float64)).tolist() == [False, False, False, True, False, False]
        assert all(flushed[name] is array for name, array in network.tensors.items() if name != "odd")

    def test_half_precision_keeps_its_own(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        network.tensors["odd"] = np.array([1e-6], np.float16)
        assert flush_subnormals(network).tensors["odd"][0] == np.float16(1e-6)
