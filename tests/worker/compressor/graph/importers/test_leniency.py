"""What onnxruntime runs though the checker refuses it: the file comes in, and leaves as a valid one."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph.nets import difference, reference
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model

RNG = np.random.default_rng(0)
FEEDS = {"x": RNG.standard_normal((3, 4)).astype(np.float32)}
SIGNATURE = [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]


def perceptron(ir=8):
    """Two linear layers over four numbers."""
    tensors = [
        numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("a", (4, 8)), ("b", (8, 2)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", k]) for name, k in (("x", 4), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir)


def domain_by_its_other_name(model):
    model.graph.node[0].domain = "ai.onnx"


def nameless_graph(model):
    model.graph.name = ""


def initializers_that_are_not_listed(model):
    model.ir_version = 3


def output_without_a_shape(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")


def output_without_a_type(model):
    model.graph.output[0].ClearField("type")


def output_of_another_rank(model):
    del model.graph.output[0].type.tensor_type.shape.dim[:]


def output_of_another_width(model):
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def domains_that_nothing_uses(model):
    for domain in ("com.microsoft", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.ml"):
        model.opset_import.append(helper.make_opsetid(domain, 1))


def input_without_a_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


EDITS = [
    domain_by_its_other_name, nameless_graph, initializers_that_are_not_listed, output_without_a_shape, output_without_a_type,
    output_of_another_rank, output_of_another_width, domains_that_nothing_uses, input_without_a_shape,
]  # fmt: skip


def taken(model, folder, signature=SIGNATURE):
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    network, _ = import_model(path, "onnx", signature)
    write_onnx(network, folder / "again.onnx")
    onnx.checker.check_model(str(folder / "again.onnx"), full_check=True)
    return network


class TestPutRight:
    @pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
    def test_leaves_as_a_valid_file_that_computes_the_same(self, edit, tmp_path):
        model = perceptron()
        edit(model)
        network = taken(model, tmp_path)
        assert [node.name for node in network.nodes] == ["first", "relu", "second"]
        assert [(port.name, port.dtype, port.shape[1:]) for port in network.outputs] == [("y", "float32", (2,))]
        assert difference(reference(model, FEEDS)[0], reference(tmp_path / "again.onnx", FEEDS)[0]) < 1e-6

    def test_names_that_two_nodes_share_are_told_apart(self, tmp_path):
        model = perceptron()
        for node in model.graph.node:
            node.name = "node"
        assert [node.name for node in taken(model, tmp_path).nodes] == ["node", "node.1", "node.2"]

    def test_a_rank_that_cannot_be_inferred_is_the_one_that_was_seen(self, tmp_path):
        model = perceptron()
        for name, axis in (("size", [0]), ("rest", [-1])):
            model.graph.initializer.append(numpy_helper.from_array(np.array(axis), name))
        model.graph.node[-1].output[0] = "flat"
        model.graph.node.extend([
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "size"], ["n"]),
            helper.make_node("Concat", ["n", "rest"], ["wanted"], axis=0),
            helper.make_node("Reshape", ["flat", "wanted"], ["y"]),
        ])  # fmt: skip
        output_without_a_shape(model)
        assert len(taken(model, tmp_path).outputs[0].shape) == 2

    def test_an_input_without_a_shape_needs_a_signature(self, tmp_path):
        model = perceptron()
        input_without_a_shape(model)
        with pytest.raises(ImportFailed) as caught:
            taken(model, tmp_path, None)
        assert caught.value.code == "signature_needed" and "'x'" in caught.value.detail

    def test_an_output_that_is_not_of_its_type_is_refused(self, tmp_path):
        model = perceptron()
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        with pytest.raises(ImportFailed, match="'y' is INT64 by the file's word, and FLOAT"):
            taken(model, tmp_path)
