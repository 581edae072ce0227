"""Both routes of TorchScript, and what goes in and comes out as it did in the upload."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.importers.inlined import networks
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.importers import import_model, torchscript
from worker.compressor.graph.importers.arguments import read_arguments
from worker.compressor.graph.surgery import cut


def save(net, path, example=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(net) if example is None else torch.jit.trace(net, example, strict=False)
    module.save(str(path))
    return torch.jit.load(str(path))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in (value.values() if isinstance(value, dict) else value) for t in flat(item)]


class Named(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)


class ToDict(Body):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.layers(x)
        return {"logits": self.head(features), "aux": self.head(features * 0.5)}


class ToList(Body):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = self.layers(x)
        return [self.head(features), self.head(features * 0.5)]


class ToNested(Body):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, list[torch.Tensor]]]:
        features = self.layers(x)
        return self.head(features), (self.head(features + 1), [self.head(features * 0.5)])


class ToNamed(Body):
    def forward(self, x: torch.Tensor) -> Named:
        features = self.layers(x)
        return Named(self.head(features), self.head(features * 0.5))


STRUCTURES = {ToDict: dict, ToList: list, ToNested: tuple, ToNamed: tuple}
SIGNATURE = [{"name": "x", "dtype": "float32", "shape": ["batch", 6]}]


class TestOutputs:
    @pytest.mark.parametrize("net", STRUCTURES, ids=lambda net: net.__name__)
    def test_of_a_cut_network_have_the_structure_of_the_upload(self, net, tmp_path):
        torch.manual_seed(0)
        module = save(net().eval(), tmp_path / "m.pt")
        network, _ = import_model(tmp_path / "m.pt", "torchscript", SIGNATURE)
        analysis = analyse(network, network.sample_shapes)
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        write_torchscript(result.network, tmp_path / "cut.pt")
        write_torchscript(network, tmp_path / "same.pt")
        x = torch.randn(5, 6)
        wanted, made, same = module(x), torch.jit.load(tmp_path / "cut.pt")(x), torch.jit.load(tmp_path / "same.pt")(x)
        assert isinstance(made, STRUCTURES[net]) and isinstance(same, STRUCTURES[net])
        assert not isinstance(made, dict) or list(made) == list(wanted)
        for a, b, c in zip(flat(wanted), flat(same), flat(made), strict=True):
            assert nets.difference(a.detach().numpy(), b.numpy()) < 1e-6 and a.shape == c.shape

    def test_traced_dict(self, tmp_path):
        module = save(ToDict().eval(), tmp_path / "m.pt", torch.randn(2, 6))
        network, _ = import_model(tmp_path / "m.pt", "torchscript", SIGNATURE)
        write_torchscript(network, tmp_path / "out.pt")
        x = torch.randn(3, 6)
        made = torch.jit.load(tmp_path / "out.pt")(x)
        assert set(made) == {"logits", "aux"} and torch.allclose(made["aux"], module(x)["aux"], atol=1e-6)

    def test_weights_of_the_written_module_have_the_names_of_the_upload(self, tmp_path):
        module = save(ToDict().eval(), tmp_path / "m.pt")
        network, _ = import_model(tmp_path / "m.pt", "torchscript", SIGNATURE)
        write_torchscript(network, tmp_path / "out.pt")
        written = torch.jit.load(tmp_path / "out.pt").state_dict()
        for name, tensor in module.state_dict().items():
            assert torch.equal(written[name], tensor), name


class Scaled(nn.Module):
    """A rate that is fixed, a flag, and an optional tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(
        self, audio: torch.Tensor, rate: int, mask: torch.Tensor | None = None, double: bool = False, scale: float = 2.0
    ) -> torch.Tensor:
        if rate not in (8000, 16000):
            raise ValueError("rate")
        h = functional.relu(self.first(audio)) * (rate / 8000)
        if mask is not None:
            h = h * mask
        return self.second(h * 2 if double else h) * scale


class TestArguments:
    def signature(self, *more):
        return [{"name": "audio", "dtype": "float32", "shape": ["batch", 6]}, *more]

    def test_fixed_ones_are_no_inputs_and_keep_their_values(self, tmp_path):
        module = save(Scaled().eval(), tmp_path / "m.pt")
        given = self.signature({"name": "rate", "value": 16000}, {"name": "double", "value": True})
        network, _ = import_model(tmp_path / "m.pt", "torchscript", given)
        assert [port.name for port in network.inputs] == ["audio"]
        write_torchscript(network, tmp_path / "out.pt")
        written, x = torch.jit.load(tmp_path / "out.pt"), torch.randn(4, 6)
        wanted = module(x, 16000, None, True)
        assert torch.allclose(written(x), wanted, atol=1e-6)
        assert torch.allclose(written(x, 16000, None, True), wanted, atol=1e-6)
        assert torch.allclose(written(audio=x, rate=16000), wanted, atol=1e-6)
        with pytest.raises(torch.jit.Error):
            written(x, 8000)

    def test_an_optional_tensor_may_be_given(self, tmp_path):
        module = save(Scaled().eval(), tmp_path / "m.pt")
        given = self.signature(
            {"name": "rate", "value": 8000}, {"name": "mask", "dtype": "float32", "shape": ["batch", 12]}
        )
        network, _ = import_model(tmp_path / "m.pt", "torchscript", given)
        x, mask = torch.randn(4, 6), torch.rand(4, 12)
        made = run(network, {"audio": x, "mask": mask})["output"]
        assert nets.difference(module(x, 8000, mask).detach().numpy(), made) < 1e-6

    def test_the_module_may_call_itself_as_it_likes(self, tmp_path):
        class Selfless(Body):
            def forward(this, x: torch.Tensor) -> torch.Tensor:
                return this.head(this.layers(x))

        save(Selfless().eval(), tmp_path / "m.pt")
        network, _ = import_model(tmp_path / "m.pt", "torchscript", SIGNATURE)
        assert [port.name for port in network.inputs] == ["x"]

    @pytest.mark.parametrize(
        "more", [[], [{"name": "rat", "value": 1}], [{"name": "rate", "value": 5}], [{"name": "rate", "value": "x"}]]
    )
    def test_that_do_not_fit_are_refused(self, more, tmp_path):
        save(Scaled().eval(), tmp_path / "m.pt")
        with pytest.raises(ImportFailed) as caught:
            import_model(tmp_path / "m.pt", "torchscript", self.signature(*more))
        assert caught.value.code == "input_mismatch"


BOTH = [networks.Shuffled, networks.SqueezeExcite, nets.Plain, nets.Residual, nets.Separable, nets.Dense]


class TestRoutes:
    @pytest.mark.parametrize("kind", ["script", "trace"])
    @pytest.mark.parametrize("net", BOTH, ids=lambda net: net.__name__)
    def test_agree(self, net, kind, tmp_path):
        torch.manual_seed(0)
        live = nets.build(net) if net.__module__ == nets.__name__ else net().eval()
        shape = net.shape if net.shape[0] == "batch" else ("batch", *net.shape)
        example = None if kind == "script" else torch.randn(2, *shape[1:])
        module = save(live, tmp_path / "m.pt", example).eval()
        arguments = read_arguments(module, [{"name": "x", "dtype": "float32", "shape": list(shape)}])
        structure = torchscript._structure(module, arguments)
        found = []
        for route in (torchscript.by_exporter, torchscript.by_walk):
            network = route(module, arguments, structure)
            at = {"x": (1, *shape[1:])}
            counts = count(network, at)
            outputs = run(network, {"x": torch.ones(3, *shape[1:])})
            names = {origin.source for origin in network.origins.values() if origin.source in module.state_dict()}
            found.append((counts.num_params, counts.macs, names, outputs))
        assert found[0][:3] == found[1][:3]
        for a, b in zip(found[0][3].values(), found[1][3].values(), strict=True):
            assert nets.difference(a, b) < 1e-6


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 40, 3, padding=1), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 64, 3), nn.ReLU()
        )
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean([2, 3]))


class TestHalf:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("route", [torchscript.by_exporter, torchscript.by_walk])
    def test_every_weight_is_found_by_either_route(self, dtype, route, tmp_path):
        torch.manual_seed(0)
        module = save(Convolutions().eval().to(dtype), tmp_path / "m.pt").eval()
        name = str(dtype).removeprefix("torch.")
        signature = [{"name": "x", "dtype": name, "shape": ["batch", 3, 10, 10]}]
        arguments = read_arguments(module, signature)
        network = route(module, arguments, torchscript._structure(module, arguments))
        state = module.state_dict()
        sources = {origin.source for origin in network.origins.values()}
        assert {name for name, _ in module.named_parameters()} <= sources
        for tensor, origin in network.origins.items():
            if origin.source in state:
                held = network.tensors[tensor].astype(np.float32)
                assert np.array_equal(held, state[origin.source].float().numpy()), origin.source
        network, _ = import_model(tmp_path / "m.pt", "torchscript", signature)
        write_torchscript(network, tmp_path / "out.pt")
        x = torch.randn(4, 3, 10, 10).to(dtype)
        made = torch.jit.load(tmp_path / "out.pt")(x)
        assert made.dtype == dtype and nets.difference(module(x).float().detach().numpy(), made.float().numpy()) < 3e-2
