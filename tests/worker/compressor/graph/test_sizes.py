"""Functions of sizes: plain numbers in numpy, and recorded where they are sizes of a network with free axes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module


def network_of(lines, constants, folder):
    """`x` [n, c] expanded to the shape `s`, which the lines of (operator, inputs, attributes) compute; `v` holds Shape(x)."""
    nodes = [helper.make_node("Shape", ["x"], ["v"])]
    for index, (op, inputs, attributes) in enumerate(lines):
        name = "s" if index == len(lines) - 1 else f"s{index}"
        nodes.append(helper.make_node(op, inputs, [name], **attributes))
    nodes += [helper.make_node("ConstantOfShape", ["s"], ["y"])]
    nodes += [helper.make_node("Sub", ["x", "x"], ["zero"]), helper.make_node("ReduceSum", ["zero"], ["none"])]
    nodes += [helper.make_node("Add", ["y", "none"], ["out"])]
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    path = folder / "sizes.onnx"
    onnx.save(model, path)
    return model, import_model(path, "onnx", None)[0]


TWO, FOUR, BOTH = {"two": np.array([2])}, {"four": np.array([4])}, {"both": np.array([4, 3])}
CASES = {
    "Mod": ([("Mod", ["v", "four"], {})], FOUR),
    "Div": ([("Div", ["v", "two"], {})], TWO),
    "Max": ([("Max", ["v", "both"], {})], BOTH),
    "Min": ([("Min", ["v", "both"], {})], BOTH),
    "Max of one": (
        [
            ("Gather", ["v", "first"], {}),
            ("Max", ["s0", "at_least"], {}),
            ("Unsqueeze", ["s1", "first_axis"], {}),
            ("Concat", ["s2", "one"], {"axis": 0}),
        ],
        {"first": np.array(0), "at_least": np.array(4), "first_axis": np.array([0]), "one": np.array([1])},
    ),
    "Clip of fractions": (
        [
            ("Cast", ["v"], {"to": 1}),
            ("Div", ["s0", "half"], {}),
            ("Clip", ["s1", "low", "high"], {}),
            ("Cast", ["s2"], {"to": 7}),
        ],
        {"half": np.float32(2), "low": np.float32(2), "high": np.float32(2.6)},
    ),
    "OneHot": (
        [
            ("Gather", ["v", "first"], {}),
            ("Concat", ["one", "s0"], {"axis": 0}),
            ("OneHot", ["at", "three", "s1"], {}),
            ("Reshape", ["s2", "flat"], {}),
        ],
        {
            "first": np.array([0]),
            "one": np.array([1]),
            "at": np.array([1]),
            "three": np.array(3),
            "flat": np.array([-1]),
        },
    ),
    "Pow to a whole number": (
        [("Cast", ["v"], {"to": 1}), ("Pow", ["s0", "half"], {}), ("Cast", ["s1"], {"to": 7})],
        {"half": np.array(0.5, np.float32)},
    ),
    "ReduceProd": ([("ReduceProd", ["v"], {})], {}),
    "ReduceMax": ([("ReduceMax", ["v"], {})], {}),
    "ReduceSum": ([("ReduceSum", ["v"], {"keepdims": 1})], {}),
    "Abs of Neg": ([("Neg", ["v"], {}), ("Abs", ["s0"], {})], {}),
    "GreaterOrEqual": ([("GreaterOrEqual", ["v", "both"], {}), ("Where", ["s0", "v", "both"], {})], BOTH),
    "And, Not": (
        [
            ("Less", ["v", "both"], {}),
            ("LessOrEqual", ["v", "four"], {}),
            ("And", ["s0", "s1"], {}),
            ("Not", ["s2"], {}),
            ("Where", ["s3", "v", "both"], {}),
        ],
        {**BOTH, **FOUR},
    ),
    "Equal to -1": (
        [("Equal", ["v", "minus"], {}), ("Where", ["s0", "both", "v"], {})],
        {**BOTH, "minus": np.array([-1, 6])},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [3, 5])
def test_shapes_follow_the_input_as_in_onnxruntime(name, batch, tmp_path):
    model, network = network_of(*CASES[name], tmp_path)
    x = np.ones((batch, 6), np.float32)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0].shape
    assert run(network, {"x": x})["out"].shape == wanted
    module = to_module(network, single=True)
    assert module(torch.from_numpy(x)).shape == wanted
    assert torch.jit.script(module)(torch.from_numpy(x)).shape == wanted


def test_data_is_clipped_at_a_size(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["v"]),
        helper.make_node("Gather", ["v", "first"], ["size"]),
        helper.make_node("Cast", ["size"], ["most"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Clip", ["x", "", "most"], ["below"]),
        helper.make_node("Clip", ["below", "least", "most"], ["y"]),
    ]
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [port("x")], [port("y")], [numpy_helper.from_array(np.array(0), "first")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    network = import_model(path, "onnx", None)[0]
    x = np.arange(18, dtype=np.float32).reshape(3, 6)
    wanted = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    scripted = torch.jit.script(to_module(network, single=True))
    assert (run(network, {"x": x})["y"] == wanted).all() and (scripted(torch.from_numpy(x)).numpy() == wanted).all()
