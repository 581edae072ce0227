import enum
import subprocess
import sys
import warnings
import zipfile
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut

KINDS = ["script", "trace", "frozen"]


def save(net, kind, path, batch=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "trace":
            module = torch.jit.trace(net, torch.randn(batch, *net.shape))
        else:
            module = torch.jit.script(net)
            module = torch.jit.freeze(module) if kind == "frozen" else module
        module.save(str(path))
    return path


def load(net, kind, folder):
    path = save(net, kind, folder / f"{kind}.pt")
    signature = [{"name": "x", "dtype": "float32", "shape": ["batch", *net.shape]}]
    return import_model(path, "torchscript", signature)[0], path


def masked_module(path, rows):
    """The plain second version: the loaded module with the named slices set to zero."""
    module = torch.jit.load(str(path)).eval()
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for row in rows:
            for axis in row.zero:
                kept = row.axes[axis]
                tensor = state[row.name]
                parts = kept if isinstance(kept[0], list) else [kept]
                for part, keep in zip(tensor.chunk(len(parts)), parts, strict=True):
                    gone = [index for index in range(part.shape[int(axis)]) if index not in keep]
                    part.index_fill_(int(axis), torch.tensor(gone, dtype=torch.long), 0)
    return module


class Arrangement(enum.Enum):
    CHANNELS_FIRST = "NCHW"
    CHANNELS_LAST = "NHWC"


class Arranged(nn.Module):
    """Decides by a member of an enumeration what it does."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.arrangement = nn.Conv2d(3, 8, 3), Arrangement.CHANNELS_LAST

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.arrangement != Arrangement.CHANNELS_FIRST:
            x = x.permute(0, 2, 3, 1)
        if self.arrangement == Arrangement.CHANNELS_FIRST:
            x = x * 2
        return x


def by_another_author(path):
    """The file as if its enumeration were not known here."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name).replace(b"Arrangement", b"Elsewhere11") for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, blob in entries.items():
            archive.writestr(name, blob)
    return path


class TimeFirst(nn.Module):
    """A recurrent layer over batches first, whose result is transposed in front of a linear layer."""

    shape = (5, 6)

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0])


class TestImport:
    def test_a_half_network_that_transposes_before_a_product_runs_in_onnxruntime(self, tmp_path):
        path = save(nets.build(TimeFirst).half(), "script", tmp_path / "m.pt")
        signature = [{"name": "x", "dtype": "float16", "shape": ["batch", 5, 6]}]
        network, _ = import_model(path, "torchscript", signature)
        write_onnx(network, tmp_path / "m.onnx")
        script = (
            "import sys, numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1])\n"
            "assert s.run(None, {'x': numpy.ones((3, 5, 6), numpy.float16)})[0].shape == (3, 5, 4)"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "m.onnx")]
        out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # it may crash
        assert out.returncode == 0, out.stderr

    def test_decides_by_the_members_of_an_unknown_enumeration(self, tmp_path):
        live = nets.build(Arranged)
        path = by_another_author(save(live, "script", tmp_path / "m.pt"))
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 6, 6]}]
        network, _ = import_model(path, "torchscript", signature)
        feeds = nets.samples(network, 3)
        with torch.no_grad():
            wanted = live(torch.from_numpy(feeds["x"])).numpy()
        assert nets.difference(wanted, next(iter(run(network, feeds).values()))) < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("net", [nets.Plain, nets.Residual, nets.Separable, nets.Shuffle], ids=lambda n: n.__name__)
    def test_computes_what_the_module_does_and_keeps_every_weight(self, net, kind, tmp_path):
        live = nets.build(net)
        network, path = load(live, kind, tmp_path)
        feeds = nets.samples(network, 3)
        with torch.no_grad():
            wanted = torch.jit.load(str(path))(torch.from_numpy(feeds["x"])).numpy()
        assert nets.difference(wanted, next(iter(run(network, feeds).values()))) < 1e-5
        if kind != "frozen":
            assert count(network, network.sample_shapes).num_params == sum(p.numel() for p in live.parameters())
            state = live.state_dict()
            for name, origin in network.origins.items():
                if origin.source in state:
                    assert np.array_equal(network.tensors[name], state[origin.source].numpy()), origin.source

    def test_layers_are_called_by_module_path(self, tmp_path):
        network, _ = load(nets.build(nets.Residual), "script", tmp_path)
        layers = [layer.name for layer in count(network, network.sample_shapes).layers]
        assert layers == ["stem", "a1", "a2", "b1", "b2", "bn", "skip", "head"]

    def test_frozen_weights_are_called_by_their_constants(self, tmp_path):
        network, path = load(nets.build(nets.Plain), "frozen", tmp_path)
        constants = torch.jit.load(str(path)).code_with_constants[1].const_mapping
        named = {o.source: network.tensors[n] for n, o in network.origins.items() if o.source.startswith("CONSTANTS.")}
        assert len(named) == 8
        for name, array in named.items():
            assert np.array_equal(constants[name.removeprefix("CONSTANTS.")].numpy(), array)

    def test_ports_are_those_of_the_signature(self, tmp_path):
        network, _ = load(nets.build(nets.Plain), "script", tmp_path)
        assert [(port.name, port.dtype, port.shape) for port in network.inputs] == [
            ("x", "float32", ("batch", 3, 8, 8))
        ]
        assert network.outputs[0].shape[0] == "batch"

    def test_equal_weights_are_not_merged(self, tmp_path):
        live = nets.build(nets.Shared)
        network, _ = load(live, "script", tmp_path)
        sources = {origin.source for origin in network.origins.values()}
        assert {"stem.bias", "twice.bias", "last.bias", "head.bias"} <= sources

    # Nhwc is written in a way that only tracing takes.
    @pytest.mark.parametrize(
        ("net", "kind"),
        [(net, kind) for net in nets.ALL for kind in ("script", "trace") if (net, kind) != (nets.Nhwc, "script")],
    )
    def test_a_cut_computes_the_masked_module(self, net, kind, tmp_path):
        network, path = load(nets.build(net), kind, tmp_path)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        write_torchscript(result.network, tmp_path / "cut.pt")
        x = torch.from_numpy(nets.samples(network, 4)["x"])
        with torch.no_grad():
            wanted = masked_module(path, result.weights)(x)
            got, whole = torch.jit.load(str(tmp_path / "cut.pt"))(x), torch.jit.load(str(path))(x)
        flat = lambda value: [value] if isinstance(value, torch.Tensor) else list(value)  # noqa: E731
        errors = [nets.difference(a.numpy(), b.numpy()) for a, b in zip(flat(wanted), flat(got), strict=True)]
        controls = [nets.difference(a.numpy(), b.numpy()) for a, b in zip(flat(whole), flat(got), strict=True)]
        assert max(errors) < 1e-5 and max(controls) > 1e-3


class Hidden(nn.Module):
    """Depends on the values of its input, which a graph cannot say."""

    shape = (4,)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(self.fc(x)[:, None, :].expand(-1, 4, -1) + torch.eye(4))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Named(nn.Module):
    """Returns two tensors that have names."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Pair:
        x = torch.relu(self.a(x))
        return Pair(self.b(x), self.c(x))


class Counted(Named):
    """Returns how many rows there were."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.b(self.a(x)), x.size(0)


class FromPair(Named):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.b(self.a(pair[0])) + pair[1]


class Steps(nn.Module):
    """A recurrent cell by hand, from a state that is filled with one number for each row."""

    shape = (3, 5)

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.c, self.start = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2), start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.full((x.size(0), 8), self.start)
        for step in range(x.size(1)):
            state = torch.tanh(self.a(x[:, step]) + self.b(state))
        return self.c(state)


class TestContainers:
    def test_names_of_a_tuples_items_leave_as_they_came(self, tmp_path):
        network, _ = load(Named().eval(), "script", tmp_path)
        write_torchscript(network, tmp_path / "out.pt")
        returned = torch.jit.load(str(tmp_path / "out.pt"))(torch.zeros(2, 6))
        assert type(returned).__name__ == "Pair" and returned.first.shape == (2, 3) and returned.second.shape == (2, 2)

    def test_a_number_that_follows_from_a_size_is_refused(self, tmp_path):
        with pytest.raises(ImportFailed) as caught:
            load(Counted().eval(), "script", tmp_path)
        assert caught.value.code == "unsupported_output"

    def test_a_tuple_that_goes_in_is_told_by_name(self, tmp_path):
        with pytest.raises(ImportFailed, match=r"'pair', which is Tuple\[Tensor, Tensor\]"):
            load(FromPair().eval(), "script", tmp_path)


class Spectral(nn.Module):
    """A layer whose weight is divided by its largest singular value, estimated in every call."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.a(x))


def test_spectral_normalisation_comes_in_with_its_parameters(tmp_path):
    network, path = load(Spectral().eval(), "trace", tmp_path)
    x = torch.randn(4, 6)
    wanted = torch.jit.load(str(path))(x).detach().numpy()
    assert nets.difference(wanted, next(iter(run(network, {network.inputs[0].name: x}).values()))) < 1e-6
    assert "a.parametrizations.weight.original" in {origin.source for origin in network.origins.values()}


class TestFilledStates:
    @pytest.mark.parametrize("start", [0.0, 0.5])
    def test_get_as_narrow_as_what_they_meet(self, start, tmp_path):
        torch.manual_seed(0)
        network, path = load(Steps(start).eval(), "script", tmp_path)
        analysis = analyse(network, network.sample_shapes)
        assert [(group.num_units, group.exact) for group in analysis.groups] == [(8, True)]
        result = cut(network, analysis, {0: [1, 4, 6]})
        x = torch.randn(4, *Steps.shape)
        wanted = masked_module(path, result.weights)(x).detach().numpy()
        assert {row.name for row in result.weights} == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"}
        write_onnx(result.network, tmp_path / "cut.onnx")
        assert (
            nets.difference(wanted, nets.reference(tmp_path / "cut.onnx", {network.inputs[0].name: x.numpy()})[0])
            < 1e-5
        )
        assert nets.difference(torch.jit.load(str(path))(x).detach().numpy(), wanted) > 1e-2


class TestRefusal:
    def test_without_signature(self, tmp_path):
        path = save(nets.build(nets.Plain), "script", tmp_path / "m.pt")
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "torchscript", None)
        assert caught.value.code == "signature_needed"

    def test_of_a_signature_that_does_not_fit(self, tmp_path):
        path = save(nets.build(nets.Plain), "script", tmp_path / "m.pt")
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "torchscript", [{"name": "x", "dtype": "float32", "shape": ["batch", 4, 8, 8]}])
        assert caught.value.code == "input_mismatch" and "[2, 4, 8, 8]" in caught.value.detail

    def test_of_an_operator_that_is_not_there(self, tmp_path):
        path = save(Hidden().eval(), "script", tmp_path / "m.pt")
        with pytest.raises(ImportFailed) as caught:
            import_model(path, "torchscript", [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}])
        assert caught.value.code in ("unsupported_operator", "input_mismatch")
