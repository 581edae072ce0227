"""Case 8: local functions, as exporters write them and by hand, written out and compared with onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph.nets import difference, random_kept, reference
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

RNG = np.random.default_rng(0)
OWN, LIB = "own", "pkg.onnxscript.torch_lib"


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, domain="", name=None, **attributes):
    return helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)


def referring(made, **references):
    """The node with attributes that are those of the function that it is part of."""
    for name, (source, kind) in references.items():
        made.attribute.add(name=name, ref_attr_name=source, type=kind)
    return made


def function(name, inputs, outputs, nodes, domain=OWN, opset=18, overload="", **attributes):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(OWN, 1), helper.make_opsetid(LIB, 1)]
    wanted = [key for key, default in attributes.items() if default is None]
    defaults = [helper.make_attribute(key, default) for key, default in attributes.items() if default is not None]
    return helper.make_function(
        domain, name, inputs, outputs, nodes, imports, attributes=wanted, attribute_protos=defaults, overload=overload
    )


def model(nodes, functions, tensors=None, *, shape=("n", 4), out=("n", 4), opset=18):
    port = lambda name, sizes: helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)  # noqa: E731
    initializers = [numpy_helper.from_array(value, name) for name, value in (tensors or {}).items()]
    graph = helper.make_graph(nodes, "g", [port("x", shape)], [port("y", out)], initializers)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(OWN, 1), helper.make_opsetid(LIB, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def load(made, folder, x):
    """The network of the model, which must compute what onnxruntime does with the file, also when written again."""
    onnx.save(made, folder / "m.onnx")
    network, _ = import_model(folder / "m.onnx", "onnx", None)
    expected = reference(made, {"x": x})[0]
    assert difference(expected, run(network, {"x": x})["y"]) < 2e-6
    write_onnx(network, folder / "again.onnx")
    again = onnx.load(folder / "again.onnx")
    assert difference(expected, reference(again, {"x": x})[0]) < 2e-6
    left = {entry.domain for entry in again.opset_import}
    assert not again.functions and not left & {function.domain for function in made.functions if function.domain}
    assert [port.name for port in (*again.graph.input, *again.graph.output)] == ["x", "y"]
    return network


def exported():
    """A small net as torch's exporter writes it: one function per operator of torch, one per module around them."""
    linear = function(
        "aten_linear_bias",
        ["input", "weight", "bias"],
        ["result"],
        [
            node("Transpose", ["weight"], ["tmp"], name="n0", perm=[1, 0]),
            node("MatMul", ["input", "tmp"], ["tmp_0"], name="n1"),
            node("Add", ["tmp_0", "bias"], ["result"], name="n2"),
        ],
        LIB,
    )
    leaky = function(
        "aten_leaky_relu",
        ["self"],
        ["result"],
        [referring(node("LeakyRelu", ["self"], ["result"], name="n0"), alpha=("slope", onnx.AttributeProto.FLOAT))],
        LIB,
        slope=0.2,
    )
    block = function(
        "Block",
        ["x", "weight", "bias"],
        ["out"],
        [
            node("aten_linear_bias", ["x", "weight", "bias"], ["linear"], LIB, name="fc"),
            referring(
                node("aten_leaky_relu", ["linear"], ["out"], LIB, name="act"),
                slope=("negative_slope", onnx.AttributeProto.FLOAT),
            ),
        ],
        negative_slope=None,
    )
    nodes = [
        node("Block", ["x", "a.weight", "a.bias"], ["h"], OWN, name="a", negative_slope=0.3),
        node("Block", ["h", "b.weight", "b.bias"], ["h2"], OWN, name="b"),
        node("aten_linear_bias", ["h2", "head.weight", "head.bias"], ["y"], LIB, name="head"),
    ]
    tensors = {
        "a.weight": array(16, 4), "a.bias": array(16), "b.weight": array(12, 16), "b.bias": array(12),
        "head.weight": array(3, 12), "head.bias": array(3),
    }  # fmt: skip
    return model(nodes, [linear, leaky, block], tensors, out=("n", 3))


class TestExportedFunctions:
    def test_nested_calls_are_called_after_their_calls(self, tmp_path):
        network = load(exported(), tmp_path, array(5, 4))
        assert [node.name for node in network.nodes if node.op == "MatMul"] == ["a/fc/n1", "b/fc/n1", "head/n1"]
        assert {node.outputs[0] for node in network.nodes} >= {"h", "h2", "a/linear", "y"}

    def test_attributes_are_the_calls_or_the_defaults(self, tmp_path):
        network = load(exported(), tmp_path, array(5, 4))
        slopes = [node.attributes["alpha"] for node in network.nodes if node.op == "LeakyRelu"]
        assert np.allclose(slopes, [0.3, 0.2])

    def test_they_are_cut_and_proven(self, tmp_path):
        network = load(exported(), tmp_path, array(5, 4))
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, random_kept(analysis.groups, 0.5))
        assert result.network.tensors["a.weight"].shape[0] < 16 and result.network.tensors["b.weight"].shape[0] < 12
        assert not prove(network, result, analysis, {"x": array(32, 4)}).vacuous


class TestWrittenOut:
    def test_a_function_without_names_is_known_by_its_values(self, tmp_path):
        twice = function("Twice", ["a"], ["b"], [node("Relu", ["a"], ["h"]), node("Mul", ["h", "h"], ["b"])])
        network = load(model([node("Twice", ["x"], ["y"], OWN)], [twice]), tmp_path, array(3, 4))
        assert [node.name for node in network.nodes] == ["y/h", "y"]

    def test_constants_inside_become_weights_of_each_call(self, tmp_path):
        value = numpy_helper.from_array(array(4, 4), "v")
        dense = function(
            "Dense", ["a"], ["b"], [node("Constant", [], ["w"], value=value), node("MatMul", ["a", "w"], ["b"])]
        )
        nodes = [node("Dense", ["x"], ["h"], OWN, name="one"), node("Dense", ["h"], ["y"], OWN, name="two")]
        network = load(model(nodes, [dense]), tmp_path, array(3, 4))
        assert set(network.tensors) == {"one/w", "two/w"}

    def test_an_input_handed_through_leaves_the_ports_their_names(self, tmp_path):
        same = function("Both", ["a"], ["a", "b"], [node("Neg", ["a"], ["b"])])  # onnxruntime refuses this form
        nodes = [node("Both", ["x"], ["y", "i"], OWN), node("Relu", ["i"], ["z"])]
        made = model(nodes, [same])
        made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]))
        onnx.save(made, tmp_path / "m.onnx")
        network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
        assert [port.name for port in (*network.inputs, *network.outputs)] == ["x", "y", "z"]
        x = array(3, 4)
        results = run(network, {"x": x})
        assert (results["y"] == x).all() and (results["z"] == np.maximum(-x, 0)).all()

    def test_optional_inputs_and_outputs_may_be_left_out(self, tmp_path):
        clip = function("Bound", ["a", "low", "high"], ["b", "c"],
                        [node("Clip", ["a", "low", "high"], ["b"]), node("Neg", ["b"], ["c"])])  # fmt: skip
        nodes = [node("Bound", ["x", "", "top"], ["h", ""], OWN), node("Bound", ["h"], ["", "y"], OWN)]
        load(model(nodes, [clip], {"top": np.float32(0.5)}), tmp_path, array(3, 4))

    def test_overloads_are_told_apart(self, tmp_path):
        functions = [function("F", ["a"], ["b"], [node(op, ["a"], ["b"])], overload=op) for op in ("Relu", "Neg")]
        call = node("F", ["x"], ["y"], OWN)
        call.overload = "Neg"
        onnx.save(model([call], functions), tmp_path / "m.onnx")
        network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
        assert [node.op for node in network.nodes] == ["Neg"]  # onnxruntime refuses overloads

    def test_another_opset_of_the_same_meaning_is_taken(self, tmp_path):
        older = function("F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], opset=14)
        network = load(model([node("F", ["x"], ["y"], OWN)], [older]), tmp_path, array(3, 4))
        assert network.opset == 18

    def test_another_opset_of_another_meaning_is_refused(self, tmp_path):
        older = function("F", ["a"], ["b"], [node("Softmax", ["a"], ["b"])], opset=11)
        with pytest.raises(ImportFailed, match="Softmax of opset 11, the model of opset 18") as caught:
            load(model([node("F", ["x"], ["y"], OWN)], [older]), tmp_path, array(3, 4))
        assert caught.value.code == "unsupported_version"

    def test_the_standards_own_operator_wins_over_a_function_of_its_name(self, tmp_path):
        false = function("Relu", ["a"], ["b"], [node("Neg", ["a"], ["b"])], domain="")
        network = load(model([node("Relu", ["x"], ["y"])], [false]), tmp_path, array(3, 4))
        assert [node.op for node in network.nodes] == ["Relu"]

    def test_calls_without_measure_are_refused_before_they_are_written_out(self, tmp_path):
        functions = [function("F0", ["a"], ["b"], [node("Neg", ["a"], ["b"])])]
        for level in range(1, 40):
            nodes = [node(f"F{level - 1}", ["a"], ["h"], OWN), node(f"F{level - 1}", ["h"], ["b"], OWN)]
            functions.append(function(f"F{level}", ["a"], ["b"], nodes))
        onnx.save(model([node("F39", ["x"], ["y"], OWN)], functions), tmp_path / "m.onnx")
        with pytest.raises(ImportFailed) as caught:
            import_model(tmp_path / "m.onnx", "onnx", None)
        assert caught.value.code == "inspection_resource_limit"
