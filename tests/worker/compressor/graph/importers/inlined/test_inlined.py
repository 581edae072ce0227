import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.importers.inlined import networks
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.arguments import read_arguments
from worker.compressor.graph.importers.inlined import convert


def module_of(net, kind, inputs):
    torch.manual_seed(0)
    net = net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "trace":
            return torch.jit.trace(net, inputs, check_trace=False)
        module = torch.jit.script(net)
        return torch.jit.freeze(module) if kind == "frozen" else module


def samples(shape, batch, time=10):
    generator = torch.Generator().manual_seed(batch)
    return torch.randn([{"batch": batch, "time": time}.get(size, size) for size in shape], generator=generator)


def run_onnx(model, feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in (value.values() if isinstance(value, dict) else value) for tensor in tensors(item)]


class TestConvert:
    @pytest.mark.parametrize("kind", ["script", "trace", "frozen"])
    @pytest.mark.parametrize("net", networks.ALL, ids=lambda net: net.__name__)
    def test_onnxruntime_computes_what_the_module_does_at_any_size(self, net, kind):
        signature = [{"name": "x", "dtype": "float32", "shape": list(net.shape)}]
        module = module_of(net, kind, samples(net.shape, 2))
        model, _ = convert(module, read_arguments(module, signature))
        for batch, time in ((1, 7), (5, 12)) if kind != "trace" or "time" not in net.shape else ((5, 10),):
            x = samples(net.shape, batch, time)
            with torch.no_grad():
                wanted = tensors(module(x))
            for a, b in zip(wanted, run_onnx(model, {"x": x.numpy()}), strict=True):
                assert nets.difference(a.numpy(), b) < 1e-5

    def test_channels_pass_through_a_pooling_that_repeats(self):
        module = module_of(networks.Stretched, "script", samples(networks.Stretched.shape, 2))
        signature = [{"name": "x", "dtype": "float32", "shape": list(networks.Stretched.shape)}]
        model, _ = convert(module, read_arguments(module, signature))
        assert "MatMul" not in {node.op_type for node in model.graph}

    @pytest.mark.parametrize("kind", ["script", "trace"])
    @pytest.mark.parametrize("net", [networks.UNet, networks.Scaled])
    def test_constants_are_called_by_the_names_of_parameters(self, net, kind):
        module = module_of(net, kind, samples(net.shape, 2))
        signature = [{"name": "x", "dtype": "float32", "shape": list(net.shape)}]
        model, sources = convert(module, read_arguments(module, signature))
        state = dict(module.named_parameters())
        assert set(sources.values()) == set(state)
        for name, source in sources.items():
            assert np.array_equal(model.graph.initializers[name].const_value.numpy(), state[source].detach().numpy())


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state = self.state + x.sum(0)
        return x + self.state


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool(x.sum() > 0) else x


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Inverts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x[:, None] * torch.eye(x.shape[1]))


class ReadsAfterChange(nn.Module):
    """Every second column is changed through a view of another shape, then the whole is read."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y.view(-1, 2, 2)[:, 0].add_(1.0)
        return y


class Chosen(nn.Module):
    """A key that the dict does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        named = {"a": x}
        return named["b"]


class Counts(nn.Module):
    """As many turns as there are samples."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[0]):
            x = x * 1.5
        return x


class TestRefusal:
    @pytest.mark.parametrize(
        ("net", "told"),
        [
            (Remembers, "keeps 'state'"),
            (Decides, "from data"),
            (Noisy, "randn_like is random"),
            (Inverts, "inv is not supported"),
            (ReadsAfterChange, "view"),
            (Counts, "free size"),
            (Chosen, "not followed"),
        ],
    )
    def test_names_the_operator_and_its_line(self, net, told, tmp_path):
        torch.jit.script(net().eval()).save(tmp_path / "m.pt")
        module = torch.jit.load(tmp_path / "m.pt")
        with pytest.raises(ImportFailed) as caught:
            convert(module, read_arguments(module, [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]))
        assert (
            told in caught.value.detail and "line" in caught.value.detail and "test_inlined.py" in caught.value.detail
        )
