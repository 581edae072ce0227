"""Broken ONNX files: each is refused with its code, and says what is wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers import import_model


def model(nodes=None, *, initializers=None, inputs=None, outputs=None, opset=17, ir=8, domains=()):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")] if nodes is None else nodes
    port = lambda name, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, ["n", 4])  # noqa: E731
    graph = helper.make_graph(
        nodes,
        "g",
        [port("x")] if inputs is None else inputs,
        [port("y")] if outputs is None else outputs,
        initializers or [],
    )
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(domain, 1) for domain in domains]]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def weight(**changes):
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    for key, value in changes.items():
        if key == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, key, value)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], initializers=[tensor])


def external(location, **entries):
    broken = weight()
    tensor = broken.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return broken


def node(op, *inputs, outputs=("y",), name="bad", **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=name, **attributes)


def recursive():
    function = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="own")], [])
    broken = model([helper.make_node("F", ["x"], ["y"], domain="own", name="call")], domains=("own",))
    broken.functions.append(function)
    return broken


def quantised_inside(domain, op):
    """A quantised operator in a branch of an If in a local function."""
    outputs = [helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 4])]
    branch = lambda made: helper.make_graph([made], "branch", [], outputs)  # noqa: E731
    choice = node("If", "c", outputs=["b"], then_branch=branch(node(op, "a", outputs=["r"], domain=domain)),
                  else_branch=branch(node("Relu", "a", outputs=["r"])))  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    broken = model([helper.make_node("F", ["x"], ["y"], domain="own", name="call")], domains=("own", "com.microsoft"))
    broken.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node("Relu", "a"), choice], imports))
    return broken


def sequence_port():
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    return model(inputs=[helper.make_value_info("x", kind)])


def sparse():
    broken = model()
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    broken.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [4])
    )
    return broken


def cycle():
    return model([node("Add", "x", "b", outputs=["a"], name="one"), node("Relu", "a", outputs=["b"], name="two"),
                  node("Relu", "b", name="three")])  # fmt: skip


BROKEN = {
    "empty": (b"", "malformed_model"),
    "text": (b"hello", "malformed_model"),
    "random bytes": (np.random.default_rng(0).bytes(4000), "malformed_model"),
    "truncated": (weight().SerializeToString()[:-30], "malformed_model"),
    "opset 999": (model(opset=999), "unsupported_version"),
    "opset 1": (model(opset=1), "unsupported_version"),
    "ir 99": (model(ir=99), "unsupported_version"),
    "no inputs": (model(inputs=[]), "no_inputs"),
    "no outputs": (model(outputs=[]), "no_outputs"),
    "cycle": (cycle(), "malformed_model"),
    "dangling input": (model([node("Add", "x", "nowhere")]), "malformed_model"),
    "duplicate output": (model([node("Relu", "x"), node("Tanh", "x")]), "malformed_model"),
    "circle": (model([node("Add", "a", "x"), node("Tanh", "y", outputs=["a"], name="late")]), "malformed_model"),
    "short raw data": (weight(raw_data=b"1234"), "invalid_tensor"),
    "negative dimension": (weight(dims=[-1, 4]), "invalid_tensor"),
    "huge dimensions": (weight(dims=[1 << 40]), "invalid_tensor"),
    "overflowing dimensions": (weight(dims=[1 << 33, 1 << 33]), "invalid_tensor"),
    "unknown data type": (weight(data_type=99), "invalid_tensor"),
    "training operator": (
        model(
            [helper.make_node("Gradient", ["x"], ["y"], domain="ai.onnx.preview.training", xs=["x"], y="x")],
            domains=("ai.onnx.preview.training",),
        ),
        "unsupported_feature",
    ),
    "external above": (external("../../etc/passwd"), "external_data_path"),
    "external absolute": (external("/dev/zero"), "external_data_path"),
    "external hidden above": (external("sub/../../x"), "external_data_path"),
    "external marker": (external("*/_ORT_MEM_ADDR_/*", offset=1234), "external_data_path"),
    "external nowhere": (external(""), "external_data_path"),
    "external negative offset": (external("w.bin", offset=-16), "external_data_range"),
    "external far offset": (external("w.bin", offset=1 << 62), "external_data_range"),
    "external missing": (external("w.bin"), "external_data_missing"),
    "custom domain": (model([node("Evil", "x", domain="com.evil")], domains=("com.evil",)), "unknown_operator"),
    "unknown standard operator": (model([node("Nonsense", "x")]), "malformed_model"),
    "recursive function": (recursive(), "malformed_model"),
    "strings": (model(inputs=[helper.make_tensor_value_info("x", TensorProto.STRING, [4])]), "unsupported_feature"),
    "sequence": (sequence_port(), "unsupported_feature"),
    "sparse": (sparse(), "unsupported_feature"),
    "complex": (model(inputs=[helper.make_tensor_value_info("x", TensorProto.COMPLEX64, [4])]), "unsupported_dtype"),
    "quantised": (
        model([node("DynamicQuantizeLinear", "x", outputs=["y", "s", "z"])]),
        "already_quantised",
    ),
    "quantised inside": (quantised_inside("", "DynamicQuantizeLinear"), "already_quantised"),
    "quantised by onnxruntime": (quantised_inside("com.microsoft", "QLinearSoftmax"), "already_quantised"),
    "quantised in blocks": (
        model([node("MatMulNBits", "x", domain="com.microsoft")], domains=("com.microsoft",)),
        "already_quantised",
    ),
    "random": (model([node("RandomNormalLike", "x")]), "unsupported_operator"),
}


class TestBrokenFile:
    @pytest.mark.parametrize("what", BROKEN)
    def test_is_refused_with_its_code(self, what, tmp_path):
        broken, code = BROKEN[what]
        path = tmp_path / "broken.onnx"
        path.write_bytes(broken if isinstance(broken, bytes) else broken.SerializeToString())
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "onnx", None)
        assert (caught.value.code, caught.value.error_class) == (code, "user")
        assert len(caught.value.detail) > 15

    def test_external_file_that_is_missing_is_named(self, tmp_path):
        path = tmp_path / "broken.onnx"
        path.write_bytes(external("weights.bin").SerializeToString())
        with pytest.raises(ImportFailed, match=r"weights\.bin"):
            import_model(path, "onnx", None)

    @pytest.mark.parametrize(("domain", "hint"), [("com.microsoft", "optimiser fused"), ("own", "standard")])
    def test_an_operator_of_somebody_else_is_refused_with_what_to_do(self, domain, hint, tmp_path):
        path = tmp_path / "broken.onnx"
        broken = model([node("BiasSoftmax", "x", domain=domain)], domains=(domain,))
        path.write_bytes(broken.SerializeToString())
        with pytest.raises(ImportFailed, match=f"'bad' uses the operator {domain}::BiasSoftmax") as caught:
            import_model(path, "onnx", None)
        assert hint in (caught.value.hint or "")

    def test_doubling_a_constant_is_stopped(self, tmp_path):
        nodes = [node("Concat", f"c{i}", f"c{i}", outputs=[f"c{i + 1}"], name=f"n{i}", axis=0) for i in range(34)]
        nodes.append(node("ReduceMax", "c34", outputs=["m"], name="max", keepdims=0))
        nodes.append(node("Add", "x", "m", name="add"))
        bomb = model(nodes, initializers=[numpy_helper.from_array(np.ones(2, np.float32), "c0")])
        path = tmp_path / "bomb.onnx"
        path.write_bytes(bomb.SerializeToString())
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "onnx", None)
        assert caught.value.code == "inspection_resource_limit"

    @pytest.mark.parametrize("seed", range(30))
    def test_flipped_bytes_are_taken_or_refused_but_never_crash(self, seed, tmp_path):
        rng = np.random.default_rng(seed)
        blob = bytearray(weight().SerializeToString())
        for position in rng.integers(0, len(blob), 4):
            blob[position] = rng.integers(0, 256)
        path = tmp_path / "flipped.onnx"
        path.write_bytes(bytes(blob))
        try:
            import_model(path, "onnx", None)
        except ImportFailed as error:
            assert error.code


class TestSignature:
    def test_that_contradicts_the_file_is_refused(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(weight().SerializeToString())
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "onnx", [{"name": "x", "dtype": "float32", "shape": ["n", 5]}])
        assert caught.value.code == "input_mismatch" and "[n" not in caught.value.detail.split("signature")[1]

    def test_fixes_free_dimensions(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(
            model(inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t"])]).SerializeToString()
        )
        network, facts = import_model(path, "onnx", [{"name": "x", "dtype": "float32", "shape": ["n", 7]}])
        assert network.sample_shapes == {"x": (1, 7)} and facts["sample_shapes"] == {"x": [1, 7]}
        assert network.inputs[0].shape == ("n", "t")


def test_nodes_may_come_in_any_order(tmp_path):
    yes = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["n"])],
        "yes",
        [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)],
    )
    no = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["e"])], "no", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    made = model(
        [
            helper.make_node("Relu", ["i"], ["y"], name="last"),
            helper.make_node("If", ["c"], ["i"], then_branch=yes, else_branch=no),
            helper.make_node("Abs", ["x"], ["h"], name="first"),
        ],
        initializers=[numpy_helper.from_array(np.array(True), "c")],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    assert [node.op for node in import_model(path, "onnx", None)[0].nodes] == ["Abs", "Neg", "Relu"]


def test_domains_that_no_node_uses_do_not_matter(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model(domains=("ai.onnx.preview.training", "com.microsoft.nchwc")).SerializeToString())
    assert len(import_model(path, "onnx", None)[0].nodes) == 1


def test_a_tensor_may_say_that_its_data_is_in_the_file(tmp_path):
    made = model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")],
        initializers=[numpy_helper.from_array(np.random.default_rng(0).random((4, 512), np.float32), "w")],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 512])],
    )
    made.graph.initializer[0].data_location = TensorProto.DEFAULT  # as saved after it was read from external data
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    network, _ = import_model(path, "onnx", None)
    assert (network.tensors["w"] == numpy_helper.to_array(made.graph.initializer[0])).all()


def test_checker_agrees_that_the_sound_ones_are_sound(tmp_path):
    for sound in (model(), weight()):
        onnx.checker.check_model(sound)
        path = tmp_path / "sound.onnx"
        path.write_bytes(sound.SerializeToString())
        import_model(path, "onnx", None)
