"""Hidden units: cut at random, as ONNX (one tensor for all gates and directions) and as TorchScript (one for each)."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.test_surgery import compare
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.assembled import put_together
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.surgery import cut, masked
from worker.compressor.graph.training.executor import parameter_tensors, to_module


class Speech(nn.Module):
    """Convolution over time, two bidirectional layers, mean over time."""

    shape = (9, 6)
    kind: type[nn.RNNBase] = nn.GRU

    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(6, 8, 3, padding=1), self.kind(8, 10, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        y, _ = self.rnn(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))
        return self.head(y.mean(1))


class SpeechLstm(Speech):
    kind = nn.LSTM


class SpeechRnn(Speech):
    kind = nn.RNN


class LastStates(nn.Module):
    """The last states of both directions of the second layer; the exporter stacks those of all layers."""

    shape = (7, 6)

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.head(torch.cat([h[-2], h[-1]], 1))


class Chain(nn.Module):
    """A state that is handed on: the decoder begins where the encoder ended."""

    shape = (7, 6)

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(6, 8, batch_first=True), nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        _, (h, c) = self.encoder(x)
        y, _ = self.decoder(x, (h, c))
        return self.head(y[:, -1])


ALL = [Speech, SpeechLstm, SpeechRnn, LastStates, Chain]
SIGNATURE = [{"name": "x", "dtype": "float32", "shape": ["batch", 9, 6]}]


def prunable(network):
    analysis = analyse(network, network.sample_shapes)
    return analysis, {layer for group in analysis.groups for layer in group.layers}


def scripted(kind, folder, *, trace=False):
    net, path = nets.build(kind), folder / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(net, torch.randn(2, *net.shape)) if trace else torch.jit.script(net)
    made.save(str(path))
    signature = [{"name": "x", "dtype": "float32", "shape": ["batch", *net.shape]}]
    return net, import_model(path, "torchscript", signature)[0]


class TestOnnx:
    @pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("share", [0.7, 0.3])
    def test_random_units_computes_the_masked_upload(self, kind, share, tmp_path):
        network, path = nets.load(kind, tmp_path)
        analysis, layers = prunable(network)
        assert {node.name for node in network.nodes if node.op in ("LSTM", "GRU", "RNN")} <= layers
        result = cut(network, analysis, nets.random_kept(analysis.groups, share))
        error, control = compare(path, result.network, result.weights, nets.samples(network), tmp_path)
        assert error < 1e-6 and control > 1e-2, (error, control)

    def test_directions_keep_units_of_their_own(self, tmp_path):
        network, _ = nets.load(Speech, tmp_path)
        analysis, _ = prunable(network)
        rows = cut(network, analysis, nets.random_kept(analysis.groups, 0.5)).weights
        cuts = {len(row.axes): row for row in rows if len(row.axes.get("1", [])) == 2}
        assert all(len(part) in (15, 30) for part in cuts[1].axes["1"])  # a bias: three gates, of W and of R
        forward, backward = cuts[2].axes["2"]
        assert len(forward) == len(backward) == 5 and forward != backward

    def test_stacked_layers_of_a_decoder_keep_their_widths_equal(self, tmp_path):
        network, _ = nets.load(Chain, tmp_path)
        analysis, _ = prunable(network)
        assert [group.num_units for group in analysis.groups] == [8]

    def test_zero_states_made_at_run_time_hold_nothing_back(self, tmp_path):
        network, _ = nets.load(Speech, tmp_path)
        assert all(len(node.inputs) < 6 or node.inputs[5] == "" for node in network.nodes if node.op == "GRU")

    def test_all_zeroed_readers_include_the_units_own(self, tmp_path):
        network, _ = nets.load(SpeechLstm, tmp_path)
        analysis, _ = prunable(network)
        kept = nets.random_kept(analysis.groups, 0.5)
        rows = [row for row in cut(network, analysis, kept).weights if "2" in row.axes]
        assert len(rows) == 4 and all(row.zero == ("2",) for row in rows)


class TestForms:
    """One layer of each form between two products."""

    @pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    @pytest.mark.parametrize(
        "options", [{}, {"bias": False}, {"lens": True}, {"state": True}, {"special": True}], ids=str
    )
    def test_random_units_computes_the_masked_upload(self, op, direction, options, tmp_path):
        path = between(op, direction, tmp_path, **options)
        network = import_model(path, "onnx", None)[0]
        analysis, layers = prunable(network)
        assert layers == {"first", "node"}
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        x = {"x": np.random.default_rng(3).standard_normal((5, 2, 4)).astype(np.float32)}
        error, control = compare(path, result.network, result.weights, x, tmp_path)
        assert error < 1e-6 and control > 1e-2, (error, control)

    @pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
    def test_batch_first_is_cut_as_the_masked_original(self, op, tmp_path):
        network = import_model(between(op, "bidirectional", tmp_path, layout=1), "onnx", None)[0]
        analysis, layers = prunable(network)
        assert layers == {"first", "node"}
        kept = nets.random_kept(analysis.groups, 0.5)
        x = {"x": np.random.default_rng(3).standard_normal((5, 2, 4)).astype(np.float32)}
        a, b = run(masked(network, analysis, kept), x), run(cut(network, analysis, kept).network, x)
        assert nets.difference(a["y"], b["y"]) < 1e-6

    @pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
    def test_state_that_leaves_the_network_stays(self, op, tmp_path):
        network = import_model(between(op, "forward", tmp_path, leaves=True), "onnx", None)[0]
        analysis, layers = prunable(network)
        assert layers == {"first"} and "writes the model output" in analysis.kept_because["node"]


def between(op, direction, folder, *, bias=True, lens=False, state=False, special=False, layout=0, leaves=False):
    """x [steps, batch, 4] → product → recurrent layer of 6 units → product of both directions."""
    rng, gates, hidden = np.random.default_rng(1), {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 6
    directions = 2 if direction == "bidirectional" else 1
    shapes = {"first_w": (4, 8), "w": (directions, gates * hidden, 8), "r": (directions, gates * hidden, hidden)}
    shapes |= {"b": (directions, 2 * gates * hidden), "last_w": (directions * hidden, 3)}
    shapes |= {"h": (directions, 2, hidden), "c": (directions, 2, hidden), "p": (directions, 3 * hidden)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    arrays |= {"lens": np.array([3, 5], np.int32), "flat": np.array([0, 0, -1], np.int64)}
    inputs = ["f", "w", "r", "b" if bias else "", "lens" if lens else "", "h" if state else ""]
    if op == "LSTM":
        inputs += ["c" if state else "", "p" if special else ""]
    given = {"direction": direction, "hidden_size": hidden} | ({"layout": layout} if layout else {})
    if special:
        given["clip"] = 0.7
    nodes = [
        helper.make_node("MatMul", ["x", "first_w"], ["f"], name="first"),
        helper.make_node(op, inputs, ["s", "last"], name="node", **given),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 1, 2, 3] if layout else [0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "flat"], ["u"]),
        helper.make_node("MatMul", ["u", "last_w"], ["y"], name="head"),
    ]
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 4])
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 2, 3])]
    if leaves:
        made.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, [directions, 2, hidden]))
    graph = helper.make_graph(nodes, "between", [x], made, tensors)
    path = folder / "between.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class TestTorchScript:
    @pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("trace", [False, True])
    def test_cut_module_is_the_module_with_zeroed_columns(self, kind, trace, tmp_path):
        net, network = scripted(kind, tmp_path, trace=trace)
        analysis, layers = prunable(network)
        assert {node.name for node in network.nodes if node.op in ("LSTM", "GRU", "RNN")} <= layers
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        write_torchscript(result.network, tmp_path / "cut.pt")
        x = torch.randn(3, *net.shape)
        with torch.no_grad():
            whole = net(x)
            state = dict(net.named_parameters())
            for row in result.weights:
                for axis in row.zero:
                    gone = sorted(set(range(state[row.name].shape[int(axis)])) - set(row.axes[axis]))
                    state[row.name].index_fill_(int(axis), torch.tensor(gone), 0.0)
            wanted, got = net(x), torch.jit.load(str(tmp_path / "cut.pt"))(x)
        assert nets.difference(wanted.numpy(), got.numpy()) < 1e-6
        assert nets.difference(whole.numpy(), got.numpy()) > 1e-2

    def test_weights_count_and_are_trained_under_their_own_names(self, tmp_path):
        net, network = scripted(SpeechLstm, tmp_path)
        assert count(network, network.sample_shapes).num_params == sum(p.numel() for p in net.parameters())
        names = {
            network.origins[name].source for held in parameter_tensors(to_module(network)).values() for name in held
        }
        assert names == dict(net.named_parameters()).keys()

    @pytest.mark.parametrize("kind", [Speech, SpeechLstm, SpeechRnn])
    def test_onnx_that_is_given_away_has_one_tensor_per_slot(self, kind, tmp_path):
        net, network = scripted(kind, tmp_path)
        whole = put_together(network)
        write_onnx(whole, tmp_path / "whole.onnx")
        x = torch.randn(3, *net.shape)
        got = nets.reference(tmp_path / "whole.onnx", {"x": x.numpy()})[0]
        assert nets.difference(net(x).detach().numpy(), got) < 1e-6
        assert all(name in whole.tensors for n in whole.nodes if operator_of(n).assembles for name in n.inputs[1:4])
        assert count(whole, whole.sample_shapes).num_params == count(network, network.sample_shapes).num_params
        assert put_together(whole) is whole
