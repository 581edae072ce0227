from typing import Optional

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.errors import ExportError
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.program import write_program
from worker.compressor.graph.exporters.recurrent_lengths import free_recurrent_lengths
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut


def flat(made):
    return [made] if isinstance(made, torch.Tensor) else list(made)


def written(network, folder):
    write_program(network, folder / "m.pt2")
    return torch.export.load(folder / "m.pt2")


class Tokens(nn.Module):
    """Two inputs, of which one has a free length."""

    def __init__(self):
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 6), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, tokens, extra):
        return self.head(torch.relu(self.table(tokens) + self.mix(extra).unsqueeze(1)))


def two_inputs(folder):
    """`Tokens` as ONNX with free batch and length."""
    torch.manual_seed(0)
    torch.onnx.export(
        Tokens().eval(), (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 8)), str(folder / "n.onnx"),
        dynamo=False, input_names=["tokens", "extra info"], opset_version=17,
        dynamic_axes={"tokens": {0: "batch", 1: "length"}, "extra info": {0: "batch"}},
    )  # fmt: skip
    return import_model(folder / "n.onnx", "onnx", None)[0]


class Defaults(nn.Module):
    """An argument that callers leave out, after one that they do not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, times: int, scale: float = 2.0, mask: Optional[torch.Tensor] = None):  # noqa: UP045
        x = self.linear(x) * float(times) * scale
        return x if mask is None else x * mask


class TestWriteProgram:
    @pytest.mark.parametrize("kind", nets.ALL, ids=lambda kind: kind.__name__)
    def test_runs_in_plain_torch_at_any_batch(self, kind, tmp_path):
        network, _ = nets.load(kind, tmp_path, keep_batchnorm=True)
        program = written(network, tmp_path)
        for batch in (1, 6):
            feeds = nets.samples(network, batch)
            made = flat(program.module()(torch.from_numpy(feeds["x"])))
            for a, b in zip(run(network, feeds).values(), made, strict=True):
                assert nets.difference(a, b.detach().numpy()) < 2e-6

    def test_weights_keep_their_dotted_names_after_a_cut(self, tmp_path):
        network, path = nets.load(nets.Residual, tmp_path, keep_batchnorm=True)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        state = written(result.network, tmp_path).state_dict
        assert result.weights
        whole = {t.name: tuple(t.dims) for t in onnx.load(path).graph.initializer}
        for row in result.weights:
            wanted = [len(row.axes[str(a)]) if str(a) in row.axes else size for a, size in enumerate(whole[row.name])]
            assert list(state[row.name].shape) == wanted

    def test_inputs_keep_names_and_free_axes(self, tmp_path):
        network = two_inputs(tmp_path)
        program = written(network, tmp_path)
        assert list(program.graph_signature.user_inputs) == ["tokens", "extra_info"]
        module = program.module()
        for batch, length in ((1, 1), (3, 7)):
            tokens = torch.randint(0, 11, (batch, length))
            extra = torch.randn(batch, 8)
            wanted = next(iter(run(network, {"tokens": tokens, "extra info": extra}).values()))
            assert nets.difference(wanted, module(tokens, extra).detach().numpy()) < 2e-6

    def test_a_fixed_batch_stays_fixed(self, tmp_path):
        _, path = nets.load(nets.Plain, tmp_path)
        model = onnx.load(path)
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, path)
        network, _ = import_model(path, "onnx", None)
        program = written(network, tmp_path)
        assert program.range_constraints == {}
        x = torch.from_numpy(nets.samples(network, 1)["x"])
        assert program.module()(x).shape[0] == 1
        with pytest.raises((AssertionError, RuntimeError)):
            program.module()(torch.cat([x, x]))

    def test_arguments_with_defaults_are_not_asked_for(self, tmp_path):
        net = Defaults().eval()
        torch.jit.script(net).save(tmp_path / "n.pt")
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}, {"name": "times", "value": 3}]
        module = written(import_model(tmp_path / "n.pt", "torchscript", signature)[0], tmp_path).module()
        x = torch.randn(5, 4)
        torch.testing.assert_close(module(x, 3), net(x, 3))

    def test_nameless_first_axes_are_one_batch(self, tmp_path):
        network = two_inputs(tmp_path)
        for value in network.graph.inputs:
            value.shape = ir.Shape([None, *list(value.shape)[1:]])
        module = written(network, tmp_path).module()
        assert module(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 8)).shape == (4, 3, 3)

    def test_a_network_that_cannot_be_exported_says_so(self, tmp_path):
        network, _ = nets.load(nets.Plain, tmp_path)
        with pytest.raises(ExportError, match="cannot be written"):
            write_program(network, tmp_path / "no" / "such" / "folder" / "m.pt2")


class Speech(nn.Module):
    """Two directions over a sequence of any length, and the last state beside it."""

    def __init__(self, cell, **options):
        super().__init__()
        self.cell = cell(6, 5, num_layers=2, bidirectional=True, batch_first=True, **options)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        y, state = self.cell(x)
        return self.head(y), state[0] if isinstance(state, tuple) else state


class TestRecurrentLengths:
    @pytest.mark.parametrize(
        ("cell", "options"),
        [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})],
        ids=["lstm", "gru", "tanh", "relu"],
    )
    def test_a_free_length_stays_free(self, cell, options, tmp_path):
        torch.manual_seed(0)
        net = Speech(cell, **options).eval()
        torch.onnx.export(
            net, (torch.zeros(2, 4, 6),), str(tmp_path / "n.onnx"), dynamo=False, input_names=["x"], opset_version=17,
            output_names=["y", "state"], dynamic_axes={"x": {0: "batch", 1: "time"}, "y": {0: "batch", 1: "time"}},
        )  # fmt: skip
        network = import_model(tmp_path / "n.onnx", "onnx", None)[0]
        module = written(network, tmp_path).module()
        for batch, time in ((1, 1), (3, 9)):
            x = torch.randn(batch, time, 6)
            for wanted, made in zip(net(x), module(x), strict=True):
                assert torch.allclose(wanted, made, atol=1e-6)

    def test_torch_computes_as_before_after_it(self):
        kept = dict(torch.ops.aten.lstm.input.py_kernels)
        with pytest.raises(ValueError, match="stop"), free_recurrent_lengths():
            assert torch.ops.aten.lstm.input.py_kernels != kept
            raise ValueError("stop")
        assert torch.ops.aten.lstm.input.py_kernels == kept
