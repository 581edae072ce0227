"""Operators of onnxruntime's own domain come in, and leave as standard ones that compute the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph.nets import difference, reference
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers import import_model

RNG = np.random.default_rng(0)
MS = "com.microsoft"
#: Operator, its domain, its inputs behind the first (lengths of vectors, or "x"), its outputs and its attributes.
CASES = [
    ("Gelu", MS, [], ["o"], {}),
    ("BiasGelu", MS, [8], ["o"], {}),
    ("FastGelu", MS, [8], ["o"], {}),
    ("FastGelu", MS, [], ["o"], {}),
    ("QuickGelu", MS, [], ["o"], {"alpha": 1.5}),
    ("SkipLayerNormalization", MS, ["x", 8, 8, 8], ["o"], {"epsilon": 1e-5}),
    ("SkipLayerNormalization", MS, ["x", 8, 8], ["o", "", "", "sum"], {}),
    ("SkipSimplifiedLayerNormalization", MS, ["x", 8], ["o"], {"epsilon": 1e-5}),
    ("SimplifiedLayerNormalization", "", [8], ["o"], {"axis": -1}),
    ("LayerNormalization", "", [8, 8], ["o"], {"axis": -1}),
]


def model(op, domain, given, outputs, attributes, opset):
    """The operator between two products; a second output is added to the first."""
    tensors = [
        numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in (("a", (5, 8)), ("b", (8, 3)))
    ]
    names = ["h"]
    for index, what in enumerate(given):
        names.append("h" if what == "x" else f"v{index}")
        if what != "x":
            tensors.append(numpy_helper.from_array(RNG.uniform(0.5, 1.5, what).astype(np.float32), names[-1]))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node(op, names, outputs, name="middle", domain=domain, **attributes),
        helper.make_node("Add", ["o", outputs[-1]], ["twice"], name="add"),
        helper.make_node("MatMul", ["twice", "b"], ["y"], name="last"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", k]) for name, k in (("x", 5), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)], ir_version=8
    )


class TestWriteOut:
    @pytest.mark.parametrize("opset", [14, 17, 20, 23])
    @pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{len(case[2])}")
    def test_computes_the_same_in_standard_operators(self, case, opset, tmp_path):
        upload = model(*case, opset)
        onnx.save(upload, tmp_path / "in.onnx")
        network, _ = import_model(tmp_path / "in.onnx", "onnx", None)
        write_onnx(network, tmp_path / "out.onnx")
        feeds = {"x": RNG.standard_normal((4, 5)).astype(np.float32)}
        assert difference(reference(upload, feeds)[0], reference(tmp_path / "out.onnx", feeds)[0]) < 1e-6
        written = onnx.load(tmp_path / "out.onnx")
        assert {node.domain for node in written.graph.node} == {""} and network.opset == opset

    def test_what_onnxruntime_saves_as_optimised_comes_in(self, tmp_path):
        upload = model("Relu", "", [], ["o"], {}, 17)
        kernel = numpy_helper.from_array(RNG.standard_normal((5, 5, 3)).astype(np.float32), "k")
        upload.graph.initializer.append(kernel)
        upload.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 7
        del upload.graph.node[:]
        upload.graph.node.extend([
            helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
            helper.make_node("LeakyRelu", ["c"], ["r"], alpha=0.3),
            helper.make_node("ReduceMean", ["r"], ["p"], axes=[2], keepdims=0),
            helper.make_node("Gemm", ["p", "a"], ["h"], name="gemm"),
            helper.make_node("Relu", ["h"], ["o"]),
            helper.make_node("MatMul", ["o", "b"], ["y"], name="last"),
        ])  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "in.onnx"), 4
        onnxruntime.InferenceSession(upload.SerializeToString(), options, providers=["CPUExecutionProvider"])
        assert {"FusedConv", "FusedGemm"} <= {node.op_type for node in onnx.load(tmp_path / "in.onnx").graph.node}
        network, _ = import_model(tmp_path / "in.onnx", "onnx", None)
        assert [node.name for node in network.nodes if node.op in ("Conv", "MatMul")] == ["conv", "last"]
        write_onnx(network, tmp_path / "out.onnx")
        feeds = {"x": RNG.standard_normal((4, 5, 7)).astype(np.float32)}
        assert difference(reference(upload, feeds)[0], reference(tmp_path / "out.onnx", feeds)[0]) < 1e-6

    @pytest.mark.parametrize("edit", ["no outputs", "wrong attribute"])
    def test_a_broken_one_is_refused(self, edit, tmp_path):
        upload = model("QuickGelu", MS, [], ["o"], {"alpha": "text" if edit == "wrong attribute" else 1.0}, 17)
        if edit == "no outputs":
            del upload.graph.node[1].output[:]
        onnx.save(upload, tmp_path / "in.onnx")
        with pytest.raises(ImportFailed):
            import_model(tmp_path / "in.onnx", "onnx", None)

    def test_those_that_are_not_known_are_refused_by_name(self, tmp_path):
        onnx.save(model("BiasSoftmax", MS, [8], ["o"], {"axis": 1}, 17), tmp_path / "in.onnx")
        with pytest.raises(ImportFailed, match="BiasSoftmax") as caught:
            import_model(tmp_path / "in.onnx", "onnx", None)
        assert caught.value.code == "unknown_operator"
