import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph.nets import difference
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers.exported import export


class Alike(nn.Module):
    """Weights of equal numbers, a tied one, a single number, an integer buffer that is used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        for layer in (self.a, self.b):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.c.weight = self.a.weight
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("steps", torch.arange(6))

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x))))) * self.gain + self.steps


class Namesake(nn.Module):
    """A parameter that is called as the input is."""

    def __init__(self):
        super().__init__()
        self.x, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return x @ self.x + self.bias


def exported(net, dtype=torch.float32):
    module = torch.jit.script(net.eval().to(dtype))
    rows = [{"name": "x", "dtype": str(dtype).removeprefix("torch."), "shape": ["n", 6]}]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = export(module, rows, [torch.randn(2, 6).to(dtype)], 1)
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the marks are gone again"
    return network, module


class TestExport:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_equal_weights_are_told_apart(self, dtype):
        network, module = exported(Alike(), dtype)
        sources = {origin.source for origin in network.origins.values()}
        assert sources >= {"a.weight", "a.bias", "b.weight", "b.bias", "c.bias", "gain"} and "c.weight" not in sources
        for name, origin in network.origins.items():
            if origin.source in module.state_dict():
                given = module.state_dict()[origin.source].float().numpy()
                assert np.array_equal(network.tensors[name].astype(np.float32), given)

    def test_computes_what_the_module_does(self):
        network, module = exported(Alike())
        x = torch.randn(5, 6)
        with torch.no_grad():
            wanted = module(x).numpy()
        assert difference(wanted, next(iter(run(network, {"x": x}).values()))) < 2e-6

    def test_weights_are_not_copied(self):
        network, module = exported(Alike())
        for name, origin in network.origins.items():
            if origin.source in dict(module.named_parameters()):
                assert np.shares_memory(network.tensors[name], module.state_dict()[origin.source].numpy())

    def test_a_parameter_called_as_the_input_is_found(self):
        network, module = exported(Namesake())
        assert {origin.source for origin in network.origins.values()} == {"x", "bias"}
        x = torch.randn(5, 6)
        with torch.no_grad():
            wanted = module(x).numpy()
        (port,) = network.inputs
        assert difference(wanted, next(iter(run(network, {port.name: x}).values()))) < 2e-6
