"""Each kind of operator into which a file's own batch is baked: any number of rows gives what the file gives for each."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.nets import difference, reference
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.batch import fixed_batch, free_batch, has_free_batch
from worker.compressor.graph.training.executor import to_module

RNG = np.random.default_rng(0)
ROWS = 7


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"{op}.{outputs[0]}", **attributes)


def whole(*numbers):
    return np.array(numbers, np.int64)


def made(nodes, inputs, output, tensors, opset=17):
    port = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, list(shape))  # noqa: E731
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", [port(*row) for row in inputs], [port("y", output)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def reshape(batch):
    """Features of every step through one layer, and back: the batch is merged with the steps in between."""
    nodes = [
        node("Reshape", ["x", "merged"], ["a"]),
        node("MatMul", ["a", "w"], ["b"]),
        node("Reshape", ["b", "parted"], ["c"]),
        node("Conv", ["c", "k"], ["d"]),
        node("Reshape", ["d", "flat"], ["e"]),
        node("Gemm", ["e", "v"], ["y"]),
    ]
    tensors = {"merged": whole(batch * 5, 4), "w": array(4, 6), "parted": whole(batch, 5, 6), "k": array(2, 5, 1),
               "flat": whole(batch, -1), "v": array(12, 3)}  # fmt: skip
    return made(nodes, [("x", (batch, 5, 4))], (batch, 3), tensors)


def heads(batch):
    """Attention as it is written with the batch second and merged with the heads."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("MatMul", ["t", "w"], ["q"]),
        node("Reshape", ["q", "split"], ["s"]),
        node("Transpose", ["s"], ["h"], perm=[1, 0, 2]),
        node("Transpose", ["h"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["h", "k"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "h"], ["o"]),
        node("Transpose", ["o"], ["back"], perm=[1, 0, 2]),
        node("Reshape", ["back", "join"], ["j"]),
        node("Transpose", ["j"], ["y"], perm=[1, 0, 2]),
    ]
    tensors = {"w": array(4, 8), "split": whole(5, batch * 2, 4), "join": whole(5, batch, 8)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 5, 8), tensors)


def computed_reshape(batch):
    """The target is put together from a size of the input and the file's own batch."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["steps"], axis=0),
        node("Concat", ["own", "steps", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("Conv", ["r", "k"], ["y"]),
    ]
    tensors = {"one": whole(1), "own": whole(batch), "rest": whole(2, 2), "k": array(3, 5, 1, 1)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 3, 2, 2), tensors)


def expand(batch):
    """A token that is repeated and put before the others."""
    nodes = [
        node("Expand", ["token", "sizes"], ["tokens"]),
        node("Concat", ["tokens", "x"], ["all"], axis=1),
        node("Add", ["all", "position"], ["placed"]),
        node("Expand", ["placed", "again"], ["y"]),
    ]
    tensors = {
        "token": array(1, 1, 4),
        "sizes": whole(batch, 1, 4),
        "position": array(1, 6, 4),
        "again": whole(batch, 6, 4),
    }
    return made(nodes, [("x", (batch, 5, 4))], (batch, 6, 4), tensors)


def stored_repetition(batch):
    """The same, as constant folding leaves it: the repeated token is a constant."""
    nodes = [node("Concat", ["tokens", "x"], ["all"], axis=1), node("Add", ["all", "position"], ["y"])]
    tensors = {"tokens": np.repeat(array(1, 1, 4), batch, 0), "position": np.repeat(array(1, 6, 4), batch, 0)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 6, 4), tensors)


def sliced(batch):
    nodes = [node("Slice", ["x", "starts", "ends", "axes", "steps"], ["s"]), node("Relu", ["s"], ["y"])]
    tensors = {"starts": whole(0, 1), "ends": whole(batch, 4), "axes": whole(0, 1), "steps": whole(1, 1)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 3, 4), tensors)


def padded_with_zeros(batch):
    """ConstantOfShape of whole numbers, which stays in the graph, cast and joined."""
    value = numpy_helper.from_array(whole(3), "v")
    nodes = [
        node("ConstantOfShape", ["sizes"], ["filled"], value=value),
        node("Cast", ["filled"], ["real"], to=TensorProto.FLOAT),
        node("Concat", ["x", "real"], ["y"], axis=2),
    ]
    return made(nodes, [("x", (batch, 5, 4))], (batch, 5, 6), {"sizes": whole(batch, 5, 2)})


def tiled(batch):
    nodes = [
        node("Tile", ["token", "times"], ["tokens"]),
        node("Concat", ["x", "tokens"], ["all"], axis=1),
        node("Tile", ["all", "twice"], ["y"]),
    ]
    tensors = {"token": array(1, 2, 4), "times": whole(batch, 1, 1), "twice": whole(1, 1, 2)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 7, 8), tensors)


def resized(batch):
    nodes = [
        node("Resize", ["x", "", "", "sizes"], ["r"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Conv", ["r", "k"], ["y"]),
    ]
    tensors = {"sizes": whole(batch, 3, 8, 6), "k": array(2, 3, 1, 1)}
    return made(nodes, [("x", (batch, 3, 4, 4))], (batch, 2, 8, 6), tensors)


def recurrent(op, gates, states):
    def build(batch):
        """States that were learned, one for every sample; steps first, as the operator wants them."""
        names = [f"state{index}" for index in range(states)]
        nodes = [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node(op, ["t", "w", "r", "", "", *names], ["s", "last"], hidden_size=6),
            node("Squeeze", ["s", "direction"], ["q"]),
            node("Transpose", ["q"], ["f"], perm=[1, 0, 2]),
            node("Squeeze", ["last", "direction0"], ["l"]),
            node("Unsqueeze", ["l", "direction"], ["u"]),
            node("Concat", ["f", "u"], ["y"], axis=1),
        ]
        tensors = {
            "w": array(1, gates * 6, 4),
            "r": array(1, gates * 6, 6),
            "direction": whole(1),
            "direction0": whole(0),
        }
        tensors |= {name: np.repeat(array(1, 1, 6), batch, 1) for name in names}
        return made(nodes, [("x", (batch, 5, 4))], (batch, 6, 6), tensors)

    return build


def one_step(batch):
    """One step of an LSTM made by a Reshape: both axes of size 1 could be that of the samples."""
    nodes = [
        node("Gemm", ["x", "m"], ["g"]),
        node("Reshape", ["g", "sequence"], ["t"]),
        node("LSTM", ["t", "w", "r"], ["s"], hidden_size=6),
        node("Reshape", ["s", "flat"], ["y"]),
    ]
    tensors = {"m": array(4, 4), "sequence": whole(1, batch, 4), "w": array(1, 24, 4), "r": array(1, 24, 6),
               "flat": whole(batch, 6)}  # fmt: skip
    return made(nodes, [("x", (batch, 4))], (batch, 6), tensors)


def two_ways(batch):
    """A Reshape makes two axes of size 1; only the convolution tells which of them is that of the samples."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("Reshape", ["t", "sizes"], ["r"]),
        node("Transpose", ["r"], ["n"], perm=[2, 1, 0, 3]),
        node("Conv", ["n", "k"], ["y"]),
    ]
    return made(
        nodes, [("x", (batch, 5, 4))], (batch, 2, 5, 4), {"sizes": whole(5, 1, batch, 4), "k": array(2, 1, 1, 1)}
    )


def indexed(batch):
    """Entries picked from all samples in one row, as indexing by a tensor of sample numbers is exported."""
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]),
        node("Gather", ["f", "places"], ["g"], axis=0),
        node("Conv", ["g", "k"], ["y"]),
    ]
    places = (np.arange(batch) * 20)[:, None, None] + np.array([[[3, 1], [19, 0], [7, 7]]])
    return made(
        nodes, [("x", (batch, 5, 4))], (batch, 2, 2), {"flat": whole(-1), "places": places, "k": array(2, 3, 1)}
    )


def lengths(batch):
    """Every sequence has the same length, which is a constant per sample."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("GRU", ["t", "w", "r", "", "length"], ["s"], hidden_size=6),
        node("Squeeze", ["s", "direction"], ["q"]),
        node("Transpose", ["q"], ["y"], perm=[1, 0, 2]),
    ]
    tensors = {"w": array(1, 18, 4), "r": array(1, 18, 6), "length": np.full(batch, 3, np.int32), "direction": whole(1)}
    return made(nodes, [("x", (batch, 5, 4))], (batch, 5, 6), tensors)


KINDS = {
    "Reshape": reshape, "Reshape to heads": heads, "Reshape by computed sizes": computed_reshape, "Expand": expand,
    "repeated constant": stored_repetition, "Slice": sliced, "ConstantOfShape": padded_with_zeros, "Tile": tiled,
    "Resize": resized, "LSTM states": recurrent("LSTM", 4, 2), "GRU state": recurrent("GRU", 3, 1),
    "RNN state": recurrent("RNN", 1, 1), "sequence lengths": lengths, "one step": one_step,
    "Reshape in two ways": two_ways, "Gather": indexed,
}  # fmt: skip


def load(model, folder):
    onnx.save(model, folder / "m.onnx")
    return import_model(folder / "m.onnx", "onnx", None)[0]


def by_the_file(model, feeds, batch):
    """What onnxruntime gives with the file, in batches of its own; the last is filled up."""
    count = len(next(iter(feeds.values())))
    rows = [np.minimum(np.arange(at, at + batch), count - 1) for at in range(0, count, batch)]
    parts = [reference(model, {name: value[index] for name, value in feeds.items()})[0] for index in rows]
    return np.concatenate(parts)[:count]


class TestFreeBatch:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("kind", KINDS)
    def test_rows_are_what_the_file_gives_for_each(self, kind, batch, tmp_path):
        model = KINDS[kind](batch)
        network = load(model, tmp_path)
        assert fixed_batch(network) == batch and not has_free_batch(network)
        freed = free_batch(network)
        assert freed is not None and has_free_batch(freed)
        x = array(ROWS, *network.inputs[0].shape[1:])
        expected = by_the_file(model, {"x": x}, batch)
        assert difference(expected, run(freed, {"x": x})["y"]) < 2e-5
        module = to_module(freed)
        assert difference(expected, module(torch.from_numpy(x))[0].detach().numpy()) < 2e-5
        assert difference(expected[:1], module(torch.from_numpy(x[:1]))[0].detach().numpy()) < 2e-5
        assert network.tensors.keys() & freed.tensors.keys() >= {
            n for n, a in network.tensors.items() if a.dtype.kind == "f"
        }

    def test_states_that_are_inputs_and_outputs_move_to_their_axis(self, tmp_path):
        nodes = [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("GRU", ["t", "w", "r", "", "", "h"], ["s", "y"], hidden_size=6),
        ]
        model = made(
            nodes, [("x", (1, 5, 4)), ("h", (1, 1, 6))], (1, 1, 6), {"w": array(1, 18, 4), "r": array(1, 18, 6)}
        )
        network = load(model, tmp_path)
        freed = free_batch(network)
        assert freed is not None
        feeds = {"x": array(ROWS, 5, 4), "h": array(ROWS, 1, 6)}
        assert difference(by_the_file(model, feeds, 1), run(freed, feeds)["y"]) < 2e-6

    def test_a_transformer_exported_for_one_sample(self, tmp_path):
        class Encoder(nn.Module):
            shape = (6, 8)

            def __init__(self):
                super().__init__()
                self.token, self.layer = nn.Parameter(torch.randn(1, 1, 8)), nn.TransformerEncoderLayer(8, 2, 16, 0.0)
                self.head = nn.Linear(8, 3)

            def forward(self, x):
                x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1).transpose(0, 1)
                return self.head(self.layer(x)[0])

        network, _ = nets.load(Encoder, tmp_path, free=False)
        freed = free_batch(network)
        feeds = nets.samples(network, ROWS)
        assert freed is not None
        single = [run(network, {"x": feeds["x"][i : i + 1]})["y"] for i in range(ROWS)]
        assert difference(np.concatenate(single), run(freed, feeds)["y"]) < 1e-5

    def test_other_free_sizes_stay_free(self, tmp_path):
        model = computed_reshape(1)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "wide"
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(whole(-1, 2), "rest"))
        model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "half"
        network = load(model, tmp_path)
        freed = free_batch(network)
        x = array(ROWS, 5, 12)
        assert freed is not None and network.sample_shapes["x"] != (1, 5, 12)
        assert difference(by_the_file(model, {"x": x}, 1), run(freed, {"x": x})["y"]) < 2e-6

    @pytest.mark.parametrize(
        "mixing",
        [
            [node("CumSum", ["x", "zero"], ["y"])],
            [node("Softmax", ["x"], ["y"], axis=0)],
            [node("Slice", ["x", "zero", "one"], ["s"]), node("Sub", ["x", "s"], ["y"])],
        ],
        ids=lambda nodes: nodes[0].op_type,
    )
    def test_samples_that_are_mixed_cannot_be_freed(self, mixing, tmp_path):
        model = made(mixing, [("x", (3, 4))], (3, 4), {"zero": whole(0), "one": whole(1)})
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(whole(0)[0] if mixing[0].op_type == "CumSum" else whole(0), "zero")
        )
        assert free_batch(load(model, tmp_path)) is None

    def test_rows_of_a_constant_that_differ_cannot_be_freed(self, tmp_path):
        model = made([node("Add", ["x", "c"], ["y"])], [("x", (3, 4))], (3, 4), {"c": array(3, 4)})
        assert free_batch(load(model, tmp_path)) is None
