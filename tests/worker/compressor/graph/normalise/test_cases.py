"""The numbered cases of `normalise`, by number."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph.nets import difference, reference
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model

RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((3, 4)).astype(np.float32)}


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def load(nodes, folder, initializers=None, *, ir=8, inputs=(), value_info=(), opset=13):
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])  # noqa: E731
    tensors = [numpy_helper.from_array(value, name) for name, value in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "g", [port("x"), *inputs], [port("y")], tensors, value_info=list(value_info))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    onnx.save(model, folder / "m.onnx")
    network, _ = import_model(folder / "m.onnx", "onnx", None)
    assert difference(reference(model, X)[0], run(network, X)["y"]) < 2e-6
    write_onnx(network, folder / "again.onnx")
    assert difference(reference(model, X)[0], reference(folder / "again.onnx", X)[0]) < 2e-6
    return network


def test_case_1_constant_nodes_become_initializers(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array(4, 4), "v"))
    network = load([constant, helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], tmp_path)
    assert [node.op for node in network.nodes] == ["MatMul"] and network.tensors["w"].shape == (4, 4)


def test_case_1_other_forms_of_a_constant(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Unsqueeze", ["x", "axes"], ["u"]),
        helper.make_node("Squeeze", ["u", "axes"], ["s"]),
        helper.make_node("Mul", ["s", "two"], ["y"]),
    ]
    assert count(load(nodes, tmp_path), {"x": (1, 4)}).num_params == 0


def test_case_2_filled_weights_become_initializers(tmp_path):
    value = numpy_helper.from_array(np.array([0.5], np.float32), "v")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"),
    ]
    network = load(nodes, tmp_path, {"shape": np.array([4, 4])})
    assert (network.tensors["w"] == 0.5).all() and [node.op for node in network.nodes] == ["MatMul"]


def test_case_3_identity_of_a_vector_becomes_a_copy_that_knows_its_source(tmp_path):
    nodes = [
        helper.make_node("Identity", ["b"], ["b2"]),
        helper.make_node("Add", ["x", "b"], ["h"], name="one"),
        helper.make_node("Add", ["h", "b2"], ["y"], name="two"),
    ]
    network = load(nodes, tmp_path, {"b": array(4)})
    assert [node.op for node in network.nodes] == ["Add", "Add"]
    copies = [network.origins[node.inputs[1]] for node in network.nodes]
    assert [(origin.source, origin.nodes) for origin in copies] == [("b", ("one",)), ("b", ("two",))]
    assert count(network, {"x": (1, 4)}).num_params == 4, "still one tensor as long as they are equal"


def test_case_3_identity_of_a_vector_that_nobody_else_reads_keeps_its_name(tmp_path):
    nodes = [helper.make_node("Identity", ["b"], ["b2"]), helper.make_node("Add", ["x", "b2"], ["y"], name="one")]
    assert load(nodes, tmp_path, {"b": array(4)}).tensors.keys() == {"b"}


def test_case_3_identity_of_a_matrix_stays_one_tensor(tmp_path):
    nodes = [
        helper.make_node("Identity", ["w"], ["w2"]),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="two"),
    ]
    network = load(nodes, tmp_path, {"w": array(4, 4)})
    assert [node.inputs[1] for node in network.nodes] == ["w", "w"]


def test_case_4_initializers_listed_among_the_inputs_are_none(tmp_path):
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4])
    network = load([helper.make_node("MatMul", ["x", "w"], ["y"])], tmp_path, {"w": array(4, 4)}, ir=3, inputs=[listed])
    assert [port.name for port in network.inputs] == ["x"]


def test_case_5_recorded_shapes_of_inner_values_go(tmp_path):
    stale = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    load(nodes, tmp_path, {"w": array(4, 4)}, value_info=[stale])
    assert not onnx.load(tmp_path / "again.onnx").graph.value_info


def test_case_6_a_shared_vector_is_split_and_written_as_one(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["h"], name="one"),
        helper.make_node("Mul", ["h", "b"], ["y"], name="two"),
    ]
    network = load(nodes, tmp_path, {"b": array(4)})
    assert len(network.tensors) == 2
    assert [tensor.name for tensor in onnx.load(tmp_path / "again.onnx").graph.initializer] == ["b"]


def test_case_6_copies_that_differ_are_written_apart(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["h"], name="one"),
        helper.make_node("Mul", ["h", "b"], ["y"], name="two"),
    ]
    network = load(nodes, tmp_path, {"b": array(4)})
    name = network.nodes[1].inputs[1]
    network.tensors[name] = network.tensors[name] * 2
    write_onnx(network, tmp_path / "again.onnx")
    assert difference(run(network, X)["y"], reference(tmp_path / "again.onnx", X)[0]) < 2e-6
    assert count(network, {"x": (1, 4)}).num_params == 8


def test_case_10_sizes_that_are_cast_from_floats_are_followed(tmp_path):
    nodes = [
        helper.make_node("Cast", ["sizes"], ["short"], to=TensorProto.INT32),
        helper.make_node("Cast", ["short"], ["long"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "long"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["m"], name="mm"),
        helper.make_node("Reshape", ["m", "long"], ["y"]),
    ]
    network = load(nodes, tmp_path, {"sizes": np.array([-1, 4.0], np.float32), "w": array(4, 4)})
    assert [node.op for node in network.nodes] == ["Reshape", "MatMul", "Reshape"]
    assert network.tensors["long"].tolist() == [-1, 4]


def test_case_10_sizes_that_are_computed_from_floats_are_followed(tmp_path):
    nodes = [
        helper.make_node("Pow", ["sixteen", "half"], ["root"]),
        helper.make_node("Cast", ["root"], ["long"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["long", "front"], ["sizes"]),
        helper.make_node("Concat", ["free", "sizes"], ["shape"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
    ]
    constants = {"sixteen": np.array(16, np.float32), "half": np.array(0.5, np.float32), "w": array(4, 4)}
    whole = {"front": np.array([0]), "free": np.array([-1])}
    assert load(nodes, tmp_path, constants | whole).tensors["long"] == 4


def test_case_10_casts_of_data_and_to_floats_stay(tmp_path):
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["m"], name="mm"),
        helper.make_node("Cast", ["m"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
    ]
    network = load(nodes, tmp_path, {"w": array(4, 4).astype(np.float16)})
    assert [node.op for node in network.nodes] == ["Cast", "MatMul", "Cast", "Cast"]


def test_case_11_weights_standardised_in_training_mode_are_by_an_instance_normalisation(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["w", "rows"], ["flat"]),
        helper.make_node(
            "BatchNormalization", ["flat", "s", "b", "m", "v"], ["even", "n", "p"], training_mode=1, epsilon=1e-4
        ),
        helper.make_node("Reshape", ["even", "back"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"], name="mm"),
    ]
    weights = {"w": array(4, 4), "s": array(4), "b": array(4), "m": np.zeros(4, np.float32), "v": array(4)}
    sizes = {"rows": np.array([1, 4, -1]), "back": np.array([4, 4])}
    network = load(nodes, tmp_path, weights | sizes, opset=17)
    assert [node.op for node in network.nodes] == ["Reshape", "InstanceNormalization", "Reshape", "MatMul"]


def test_case_11_weights_whose_mean_is_computed_beside_are_written_out_and_count(tmp_path):
    nodes = [
        helper.make_node("Reshape", ["w", "rows"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["m"], axes=[0, 2], keepdims=0),
        helper.make_node("ReduceMean", ["flat"], ["middle"], axes=[0, 2], keepdims=1),
        helper.make_node("Sub", ["flat", "middle"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["v"], axes=[0, 2], keepdims=0),
        helper.make_node(
            "BatchNormalization", ["flat", "s", "b", "m", "v"], ["even", "n", "p"], training_mode=1, epsilon=1e-4
        ),
        helper.make_node("Reshape", ["even", "back"], ["weight"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"], name="mm"),
    ]
    weights = {"w": array(4, 4), "s": array(4), "b": array(4)}
    sizes = {"rows": np.array([1, 4, -1]), "back": np.array([4, 4])}
    network = load(nodes, tmp_path, weights | sizes, opset=17)
    assert not {node.op for node in network.nodes} & {"BatchNormalization", "InstanceNormalization"}
    assert count(network, {"x": (1, 4)}).num_params == 24  # the upload's Sub reads the weight as well


def test_case_11_of_activations_stay_in_training_mode(tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["y", "n", "p"], training_mode=1),
    ]
    weights = {"s": array(4), "b": array(4), "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
    with pytest.raises(ImportFailed, match="training mode"):
        load(nodes, tmp_path, weights, opset=17)


def test_case_12_a_part_of_a_bias_that_is_set_to_zero_remembers_the_bias(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mm"),
        helper.make_node("Expand", ["zero", "two"], ["zeros"]),
        helper.make_node("ScatterND", ["b", "middle", "zeros"], ["bias"]),
        helper.make_node("Add", ["h", "bias"], ["y"]),
    ]
    numbers = {"zero": np.zeros(1, np.float32), "two": np.array([2]), "middle": np.array([[1], [2]])}
    network = load(nodes, tmp_path, {"w": array(4, 4), "b": array(4)} | numbers, opset=17)
    assert [node.op for node in network.nodes] == ["MatMul", "Add"]
    name = network.nodes[1].inputs[1]
    assert network.tensors[name][1:3].tolist() == [0, 0] and network.tensors[name][0]
    assert network.origins[name].source == "b"
