"""Networks that spell out what torch has a function for, and what is asked of their training view."""

import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module

LINEAR, GELU, NORM = functional.linear, functional.gelu, functional.layer_norm
ATTENTION = functional.scaled_dot_product_attention


class Spelled(nn.Module):
    """A function of x [batch, 6, 8] with weights enough for each case."""

    shape = (6, 8)

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.inwards, self.shift = nn.Parameter(torch.randn(8, 12) / 3), nn.Parameter(torch.randn(12))
        self.outwards, self.one = nn.Parameter(torch.randn(12, 8) / 3), nn.Parameter(torch.randn(1))
        self.scale, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.plane, self.single = nn.Parameter(torch.rand(6, 8) + 0.5), nn.Parameter(torch.rand(1) + 0.5)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("causal", torch.triu(torch.full((6, 6), -1e9), 1))

    def forward(self, x):
        return self.function(self, x)


def spelled(function, folder, **options):
    torch.manual_seed(0)
    path = nets.export(Spelled(function).eval(), folder / "spelled.onnx", opset=13, **options)
    return import_model(path, "onnx", None)[0], path


def calls(module, function):
    return sum(node.op == "call_function" and node.target is function for node in module.graph.nodes)


def assert_same(network, atol=3e-6):
    """Outputs, and gradients of inputs and weights, at a batch that was not observed."""
    results = []
    for fused in (True, False):
        module = to_module(network, fused=fused).train()
        given = [torch.from_numpy(array).requires_grad_() for array in nets.samples(network, 3).values()]
        outputs = module(*given)
        weighed = [torch.randn(output.shape, generator=torch.Generator().manual_seed(5)) for output in outputs]
        sum((output * weight).sum() for output, weight in zip(outputs, weighed, strict=True)).backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        slopes = [*(x.grad for x in given), *(gradients[name] for name in sorted(gradients))]
        results.append([torch.cat([tensor.detach().flatten() for tensor in kind]) for kind in (outputs, slopes)])
    for ours, plain in zip(*results, strict=True):
        assert nets.difference(plain.numpy(), ours.numpy()) < atol


def norm_bare(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def heads(layer, x):
    return layer(x).view(x.size(0), 6, 2, 4).transpose(1, 2)
