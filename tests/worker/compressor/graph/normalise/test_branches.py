"""Case 9: an If that every input decides alike goes; all others are refused, with the node and what to do."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph.nets import difference, random_kept, reference
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, name=None, **attributes):
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


def branch(nodes, *results, **tensors):
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    return helper.make_graph(nodes, "branch", [], outputs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])


def choice(condition, yes, no, *outputs, name="choose"):
    return node("If", [condition], list(outputs), name=name, then_branch=yes, else_branch=no)


def model(nodes, *, shape=("n", 4), out=("n", 4), opset=17, **tensors):
    port = lambda name, sizes: helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)  # noqa: E731
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [port("x", shape)], [port("y", out)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def imported(made, folder, signature=None):
    onnx.save(made, folder / "m.onnx")
    return import_model(folder / "m.onnx", "onnx", signature)[0]


def load(made, folder, x):
    """The network without an If, which must compute what onnxruntime does with the file, also when written again."""
    network = imported(made, folder)
    assert "If" not in {node.op for node in network.nodes}
    expected = reference(made, {"x": x})[0]
    assert difference(expected, run(network, {"x": x})["y"]) < 2e-6
    write_onnx(network, folder / "again.onnx")
    again = onnx.load(folder / "again.onnx")
    assert difference(expected, reference(again, {"x": x})[0]) < 2e-6
    assert [port.name for port in again.graph.output] == ["y"]
    return network


RELU = branch([node("Relu", ["x"], ["t"], name="relu")], "t")
NEG = branch([node("Neg", ["x"], ["t"], name="neg")], "t")


class TestConstantCondition:
    @pytest.mark.parametrize(("value", "op"), [(True, "Relu"), (False, "Neg")])
    def test_the_taken_branch_stays(self, value, op, tmp_path):
        network = load(model([choice("c", RELU, NEG, "y")], c=np.array(value)), tmp_path, array(3, 4))
        assert [(node.op, node.name) for node in network.nodes] == [(op, op.lower())]

    def test_it_may_be_computed_from_constants(self, tmp_path):
        nodes = [
            node("Constant", [], ["two"], value_float=2.0),
            node("Greater", ["one", "two"], ["g"]),
            node("Not", ["g"], ["c"]),
            choice("c", RELU, NEG, "y"),
        ]
        network = load(model(nodes, one=np.float32(1)), tmp_path, array(3, 4))
        assert [node.op for node in network.nodes] == ["Relu"]

    def test_weights_of_the_branch_become_the_networks_and_are_cut(self, tmp_path):
        layers = [node("Gemm", ["x", "v", "b"], ["h"], name="a"), node("Relu", ["h"], ["r"])]
        yes, no = branch(layers, "r", v=array(4, 9), b=array(9)), branch([], "k", k=array(1, 9))
        nodes = [choice("c", yes, no, "h2"), node("MatMul", ["h2", "w"], ["y"], name="b")]
        made = model(nodes, out=("n", 3), c=np.array(True), w=array(9, 3))
        network = load(made, tmp_path, array(3, 4))
        assert set(network.tensors) == {"v", "b", "w"}
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, random_kept(analysis.groups, 0.5))
        assert result.network.tensors["v"].shape[1] < 9
        assert not prove(network, result, analysis, {"x": array(32, 4)}).vacuous

    def test_branches_of_several_choices_may_use_the_same_names(self, tmp_path):
        more = branch([node("Add", ["h", "k"], ["t"], name="relu")], "t", k=array(4))
        also = branch([node("Mul", ["i", "k"], ["t"], name="relu")], "t", k=array(4))
        nodes = [
            choice("c", RELU, NEG, "h"),
            choice("c", more, NEG, "i", name="2"),
            choice("c", also, NEG, "y", name="3"),
        ]
        network = load(model(nodes, c=np.array(True)), tmp_path, array(3, 4))
        assert len({node.name for node in network.nodes}) == 3

    def test_a_choice_within_a_choice(self, tmp_path):
        inner = branch([choice("c", RELU, NEG, "i", name="inner")], "i")
        load(model([choice("c", inner, NEG, "y")], c=np.array(True)), tmp_path, array(3, 4))

    def test_a_branch_that_hands_a_value_through(self, tmp_path):
        same = branch([node("Identity", ["h"], ["s"])], "s")
        constant = branch([], "k", k=array(1, 4))
        nodes = [node("Relu", ["x"], ["h"]), choice("c", same, NEG, "i"), choice("c", constant, NEG, "j", name="two"),
                 node("Add", ["i", "j"], ["y"])]  # fmt: skip
        load(model(nodes, c=np.array(True)), tmp_path, array(3, 4))


def squeezing(axis, size=1):
    """What the exporter writes for `squeeze`: axes of size 1 only."""
    return [
        node("Shape", ["h"], ["s"]),
        node("Gather", ["s", "axis"], ["size"]),
        node("Equal", ["size", "one"], ["c"], name="is_one"),
        choice(
            "c",
            branch([node("Squeeze", ["h", "axis"], ["t"])], "t"),
            branch([node("Identity", ["h"], ["t"])], "t"),
            "z",
        ),
    ], {"axis": np.array([axis]), "one": np.array([size])}


class TestConditionOnSizes:
    def test_a_size_that_the_file_fixes_decides(self, tmp_path):
        nodes, tensors = squeezing(1)
        conv = node("Conv", ["x", "w"], ["h"], kernel_shape=[4])
        made = model(
            [conv, *nodes, node("Relu", ["z"], ["y"])], shape=("n", 2, 8), out=("n", 5), w=array(1, 2, 4), **tensors
        )
        network = load(made, tmp_path, array(3, 2, 8))
        assert [node.op for node in network.nodes] == ["Conv", "Squeeze", "Relu"]

    def test_a_rank_decides(self, tmp_path):
        nodes = [
            node("Shape", ["x"], ["s"]),
            node("Size", ["s"], ["rank"]),
            node("Greater", ["rank", "two"], ["c"]),
            choice("c", RELU, NEG, "y"),
        ]
        network = load(model(nodes, two=np.array(2)), tmp_path, array(3, 4))
        assert [node.op for node in network.nodes] == ["Neg"]

    @pytest.mark.parametrize("free", ["n", None, -1])
    def test_a_free_size_does_not_decide(self, free, tmp_path):
        nodes, tensors = squeezing(0)
        made = model([node("Relu", ["x"], ["h"]), *nodes, node("Relu", ["z"], ["y"])], shape=(free, 4), **tensors)
        with pytest.raises(ImportFailed, match=r"'choose' \(If\).*sizes that the file leaves free") as caught:
            imported(made, tmp_path)
        assert caught.value.code == "unsupported_operator" and "`inputs`" in (caught.value.hint or "")

    @pytest.mark.parametrize("name", ["x", "by position"])
    def test_a_free_size_that_the_signature_fixes_decides(self, name, tmp_path):
        nodes, tensors = squeezing(1)
        conv = node("Conv", ["x", "w"], ["h"], kernel_shape=[4])
        made = model(
            [conv, *nodes, node("Relu", ["z"], ["y"])], shape=("n", 2, "t"), out=None, w=array(1, 2, 4), **tensors
        )
        made.graph.output[0].type.tensor_type.shape.SetInParent()
        x = array(3, 2, 8)
        network = imported(made, tmp_path, [{"name": name, "dtype": "float32", "shape": ["batch", 2, 8]}])
        assert [node.op for node in network.nodes] == ["Conv", "Squeeze", "Relu"]
        assert network.inputs[0].shape == ("n", 2, "t")
        assert difference(reference(made, {"x": x})[0], run(network, {"x": x})["y"]) < 2e-6

    def test_also_behind_a_padding_that_is_computed_from_constants(self, tmp_path):
        """What torch writes for `pad`: the amounts turned round, filled up with zeros."""
        nodes, tensors = squeezing(2)
        padding = [
            node("Shape", ["amounts"], ["given"]),
            node("Sub", ["six", "given"], ["left"]),
            node("ConstantOfShape", ["left"], ["zeros"], value=numpy_helper.from_array(np.array([0]))),
            node("Concat", ["amounts", "zeros"], ["all"], axis=0),
            node("Reshape", ["all", "pairs"], ["paired"]),
            node("Slice", ["paired", "minus", "least", "first", "minus"], ["turned"]),
            node("Transpose", ["turned"], ["columns"], perm=[1, 0]),
            node("Reshape", ["columns", "minus"], ["flat"]),
            node("Cast", ["flat"], ["pads"], to=TensorProto.INT64),
            node("Pad", ["x", "pads"], ["wide"]),
        ]
        made = model(
            [*padding, node("Conv", ["wide", "w"], ["h"], kernel_shape=[10]), *nodes, node("Relu", ["z"], ["y"])],
            shape=("n", 2, 8), out=("n", 5), w=array(5, 2, 10), amounts=np.array([1, 1]), six=np.array([6]),
            pairs=np.array([-1, 2]), minus=np.array([-1]), least=np.array([-(1 << 62)]), first=np.array([0]), **tensors,
        )  # fmt: skip
        network = load(made, tmp_path, array(3, 2, 8))
        assert "Squeeze" in {node.op for node in network.nodes}

    def test_a_size_that_the_file_claims_of_an_inner_value_does_not_decide(self, tmp_path):
        nodes, tensors = squeezing(0)
        made = model([node("Relu", ["x"], ["h"]), *nodes, node("Relu", ["z"], ["y"])], **tensors)
        made.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 4]))
        with pytest.raises(ImportFailed, match="leaves free"):
            imported(made, tmp_path)

    def test_a_script_that_asks_for_its_shape_comes_in(self, tmp_path):
        class Asks(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

            def forward(self, x: torch.Tensor):
                x = self.a(x)
                if x.dim() > 2 or x.size(-1) != 6:
                    x = x.flatten(1)
                return self.b(torch.relu(x))

        torch.jit.script(Asks().eval()).save(tmp_path / "m.pt")
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]
        network, _ = import_model(tmp_path / "m.pt", "torchscript", signature)
        assert "If" not in {node.op for node in network.nodes}


class TestConditionOnData:
    def test_is_refused_with_the_node_and_the_input(self, tmp_path):
        nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
                 choice("c", RELU, NEG, "y")]  # fmt: skip
        with pytest.raises(
            ImportFailed, match=r"'choose' \(If\).*by 'c', which is computed from data, from the input 'x'"
        ) as caught:
            imported(model(nodes), tmp_path)
        assert caught.value.code == "unsupported_operator" and "constant" in (caught.value.hint or "")

    def test_nobody_asks_where_nobody_reads_it(self, tmp_path):
        nodes = [
            node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
            choice("c", RELU, NEG, "unread"),
            node("Relu", ["x"], ["y"]),
        ]
        network = imported(model(nodes), tmp_path)
        assert [node.op for node in network.nodes] == ["Relu"]
