import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph.nets import difference, reference
from tests.worker.compressor.graph.operators.single import check, load, one_node
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 4, 5)).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


class TestMovement:
    @pytest.mark.parametrize("target", [(2, 120), (0, -1), (-1, 5), (0, 2, 3, -1), (2, 6, 20)])
    def test_reshape(self, target, tmp_path):
        check("Reshape", [X, ints(*target)], 13, tmp_path)

    @pytest.mark.parametrize("target", [[0, -1], [0, 1]])
    def test_a_zero_keeps_the_size_in_numbers_of_shapes_too(self, target, tmp_path):
        """`Shape` of x, as a column and back, is what x is reshaped to."""
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["shape", "target"], ["column"]),
            helper.make_node("Reshape", ["column", "flat"], ["again"]),
            helper.make_node("Relu", ["x"], ["positive"]),
            helper.make_node("Reshape", ["positive", "again"], ["y"]),
        ]
        constants = [numpy_helper.from_array(ints(*target), "target"), numpy_helper.from_array(ints(-1), "flat")]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, 4, 5]) for name in "xy"]
        graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        network = import_model(tmp_path / "net.onnx", "onnx", None)[0]
        np.testing.assert_array_equal(run(network, {"x": X})["y"], X.clip(0))

    @pytest.mark.parametrize("axis", [0, 1, 2, -1, 4])
    def test_flatten(self, axis, tmp_path):
        check("Flatten", [X], 13, tmp_path, axis=axis)

    @pytest.mark.parametrize(("opset", "extra", "attributes"), [(11, [], {"axes": [1, -1]}), (13, [ints(1, -1)], {})])
    def test_squeeze_and_unsqueeze(self, opset, extra, attributes, tmp_path):
        check("Unsqueeze", [X, *extra], opset, tmp_path, **attributes)
        check("Squeeze", [X[:, :1, :, :1].copy(), *extra], opset, tmp_path, **attributes)

    @pytest.mark.parametrize("order", [[0, 2, 3, 1], [1, 0, 3, 2], None])
    def test_transpose(self, order, tmp_path):
        check("Transpose", [X], 13, tmp_path, **({"perm": order} if order else {}))

    @pytest.mark.parametrize("axis", [1, -1])
    def test_concat_with_a_constant(self, axis, tmp_path):
        check("Concat", [X, X[::-1].copy()], 13, tmp_path, axis=axis)

    @pytest.mark.parametrize(
        ("opset", "extra", "attributes"),
        [(7, [], {"split": [1, 2, 3]}), (13, [ints(1, 2, 3)], {}), (11, [], {}), (18, [], {"num_outputs": 3})],
    )
    def test_split(self, opset, extra, attributes, tmp_path):
        check("Split", [X, *extra], opset, tmp_path, num_outputs_made=3, axis=1, **attributes)

    @pytest.mark.parametrize(
        ("starts", "ends", "axes", "steps"),
        [((1,), (4,), (1,), (1,)), ((-3, 0), (1 << 62, -1), (1, 3), (1, 2)), ((-1,), (-(1 << 62),), (1,), (-1,))],
    )
    def test_slice(self, starts, ends, axes, steps, tmp_path):
        check("Slice", [X, ints(*starts), ints(*ends), ints(*axes), ints(*steps)], 13, tmp_path)

    def test_slice_of_old(self, tmp_path):
        check("Slice", [X], 9, tmp_path, starts=[1, 0], ends=[3, -1], axes=[1, 2])

    @pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
    def test_pad(self, mode, tmp_path):
        check("Pad", [X, ints(0, 0, 1, 2, 0, 0, 2, 1)], 13, tmp_path, mode=mode)

    def test_pad_with_a_value_and_axes(self, tmp_path):
        check("Pad", [X, ints(1, 2), np.array(0.5, np.float32), ints(1)], 18, tmp_path)

    def test_pad_of_old(self, tmp_path):
        check("Pad", [X], 7, tmp_path, pads=[0, 1, 0, 0, 0, 1, 0, 0], value=1.5)

    @pytest.mark.parametrize("target", [(1, 6, 4, 5), (3, 1, 6, 4, 5), (1,)])
    def test_expand(self, target, tmp_path):
        x = X[:, :, :, :] if len(target) != 4 else X[:, :1].copy()
        check("Expand", [x, ints(*target)], 13, tmp_path)

    @pytest.mark.parametrize("indices", [np.array(2), ints(3, 0), ints(-1, 1), np.array([[0, 1], [2, 5]])])
    def test_gather(self, indices, tmp_path):
        check("Gather", [X, indices], 13, tmp_path, axis=1)

    def test_embedding(self, tmp_path):
        table = RNG.standard_normal((7, 3)).astype(np.float32)
        model = one_node("Gather", [ints(1, 6, 2)[None], table], 13)
        model.graph.node[0].input[:] = ["i1", "i0"]
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        feeds = {"i0": ints(1, 6, 2)[None]}
        assert difference(reference(model, feeds)[0], run(load(model, tmp_path), feeds)["o0"]) == 0

    def test_squeeze_without_axes(self, tmp_path):
        check("Squeeze", [X[:, :1].copy()], 13, tmp_path)

    def test_constant_numbers_cut_to_a_free_length(self, tmp_path):
        """Positions of words: a buffer of whole numbers, of which as many are taken as the text is long."""

        class Positions(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("positions", torch.arange(8)[None])
                self.table = nn.Embedding(8, 5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.table(self.positions[:, : x.size(1)])

        given, path = (torch.randn(2, 3, 5),), tmp_path / "positions.onnx"
        net = Positions().eval()
        torch.onnx.export(
            net, given, path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch", 1: "length"}}
        )
        network = import_model(path, "onnx", [{"name": "x", "dtype": "float32", "shape": ["batch", "length", 5]}])[0]
        module = torch.jit.script(to_module(network, single=True))
        for length in (1, 6):
            x = torch.randn(3, length, 5)
            torch.testing.assert_close(module(x), net(x))


class TestDropout:
    def test_is_the_identity(self, tmp_path):
        check("Dropout", [X, np.array(0.5, np.float32), np.array(False)], 13, tmp_path)

    def test_training_mode_is_refused(self, tmp_path):
        with pytest.raises(ImportFailed, match="training mode"):
            check("Dropout", [X, np.array(0.5, np.float32), np.array(True)], 13, tmp_path)


class TestCast:
    @pytest.mark.parametrize("to", [1, 7, 6, 11])
    def test_as_onnxruntime(self, to, tmp_path):
        check("Cast", [X * 5], 13, tmp_path, to=to)
