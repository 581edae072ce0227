"""Each case of fusion: what is fused computes the same with the same gradients."""

import math

import pytest
import torch
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import attention_nets, normed_nets
from tests.worker.compressor.graph.training.spelled import (
    ATTENTION,
    GELU,
    LINEAR,
    NORM,
    assert_same,
    calls,
    heads,
    norm_bare,
    spelled,
)
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.training.executor import to_module, write_back


def matmul_add(m, x):
    return x @ m.inwards + m.shift


def add_matmul(m, x):
    return m.shift + x @ m.inwards


def turned_weight(m, x):
    return x @ m.outwards.t() + m.shift


def bias_with_axes(m, x):
    return x @ m.inwards + m.shift.view(1, 1, 12)


def shared_weight(m, x):
    """The weight of a fused product, read in two other ways besides."""
    return (x @ m.inwards + m.shift) @ m.inwards.t() + m.inwards.sum(1)


def erf_divided(m, x):
    return x * (1 + torch.erf(x / math.sqrt(2))) * 0.5


def erf_multiplied(m, x):
    return 0.5 * x * (torch.erf(x * math.sqrt(0.5)) + 1.0)


def erf_halved_first(m, x):
    return x * (0.5 * (1 + torch.erf(x / 1.4142135)))


def tanh_power(m, x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def tanh_products(m, x):
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def silu(m, x):
    return x * torch.sigmoid(x)


def hardswish(m, x):
    return functional.hardsigmoid(x) * x


def hardswish_by_clip(m, x):
    return x * torch.clip(x + 3, 0, 6) / 6.0


def hardswish_by_halves(m, x):
    return (torch.clip(3 + x, 0, 6) * (1 / 6)) * x


def mish(m, x):
    return x * torch.tanh(functional.softplus(x))


def norm_twice_centred(m, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(1e-5 + ((x - mean) * (x - mean)).mean(-1, keepdim=True))


def norm_reciprocal(m, x):
    centred = x - x.mean((1, 2), keepdim=True)
    return centred * torch.reciprocal(torch.sqrt(centred.pow(2).mean((1, 2), keepdim=True) + 1e-3))


def norm_scaled(m, x):
    return m.scale * norm_bare(m, x)


def norm_weighted(m, x):
    return norm_bare(m, x) * m.scale + m.beta


def norm_of_planes(m, x):
    return norm_reciprocal(m, x) * m.plane


def attention_masked(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3) / 2.0 + m.causal, -1) @ v


def attention_unscaled(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3), 3) @ v


def attention_scaled_before(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax((q * 0.7) @ (k.transpose(2, 3) * 0.3), -1) @ v


def attention_scaled_by_size(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3) / (q.size(-1) ** 0.5), -1) @ v


def attention_scaled_by_quotient(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax((q * ((x.size(-1) // 2) ** -0.5)) @ k.transpose(2, 3), -1) @ v


def attention_learnt_mask(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3) + m.plane[:, :6], -1) @ v


def attention_of_shared_keys(m, x):
    """The turned keys are read by two products."""
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    turned = k.transpose(2, 3)
    return torch.softmax(q @ turned, -1) @ v + torch.softmax(v @ turned, -1) @ q


FUSED = [
    (matmul_add, {LINEAR: 1}),
    (add_matmul, {LINEAR: 1}),
    (turned_weight, {LINEAR: 1}),
    (bias_with_axes, {LINEAR: 1}),
    (shared_weight, {LINEAR: 1}),
    (erf_divided, {GELU: 1}),
    (erf_multiplied, {GELU: 1}),
    (erf_halved_first, {GELU: 1}),
    (tanh_power, {GELU: 1}),
    (tanh_products, {GELU: 1}),
    (silu, {functional.silu: 1}),
    (hardswish, {functional.hardswish: 1}),
    (hardswish_by_clip, {functional.hardswish: 1}),
    (hardswish_by_halves, {functional.hardswish: 1}),
    (mish, {functional.mish: 1}),
    (norm_bare, {NORM: 1}),
    (norm_twice_centred, {NORM: 1}),
    (norm_reciprocal, {NORM: 1}),
    (norm_scaled, {NORM: 1, torch.sqrt: 0}),
    (norm_weighted, {NORM: 1, torch.sqrt: 0}),
    (norm_of_planes, {NORM: 1}),
    (attention_masked, {ATTENTION: 1, LINEAR: 3}),
    (attention_unscaled, {ATTENTION: 1}),
    (attention_scaled_before, {ATTENTION: 1}),
    (attention_scaled_by_size, {ATTENTION: 1}),
    (attention_scaled_by_quotient, {ATTENTION: 1}),
    (attention_learnt_mask, {ATTENTION: 1}),
    (attention_of_shared_keys, {ATTENTION: 2}),
]


class TestWhatIsFused:
    @pytest.mark.parametrize(("function", "found"), FUSED, ids=lambda value: getattr(value, "__name__", ""))
    def test_computes_the_same_with_the_same_gradients(self, function, found, tmp_path):
        network, path = spelled(function, tmp_path)
        module = to_module(network).eval()
        assert {target: calls(module, target) for target in found} == found
        assert_same(network)
        feeds = nets.samples(network, 5)
        with torch.no_grad():
            got = [tensor.numpy() for tensor in module(*map(torch.from_numpy, feeds.values()))]
            scripted = torch.jit.script(module)(*map(torch.from_numpy, feeds.values()))
        for wanted, ours, theirs in zip(nets.reference(path, feeds), got, scripted, strict=True):
            assert max(nets.difference(wanted, ours), nets.difference(wanted, theirs.numpy())) < 3e-6

    @pytest.mark.parametrize("kind", [*nets.ALL, *attention_nets.ALL, *normed_nets.ALL], ids=lambda kind: kind.__name__)
    @pytest.mark.parametrize("opset", [14, 17])
    def test_whole_networks_compute_the_same_with_the_same_gradients(self, kind, opset, tmp_path):
        assert_same(nets.load(kind, tmp_path, opset=opset)[0], atol=2e-5)

    def test_a_norm_of_an_older_exporter_is_one_function(self, tmp_path):
        network, _ = nets.load(normed_nets.Layers, tmp_path, opset=13)
        module = to_module(network)
        assert calls(module, NORM) == 2
        assert calls(module, torch.sqrt) == calls(module, torch.mean) - 1 == 0

    def test_weights_stay_the_users_and_train_alike(self, tmp_path):
        network, _ = spelled(shared_weight, tmp_path, keep_batchnorm=True)  # so that the weight is one
        trained = []
        for fused in (True, False):
            module, result = to_module(network, fused=fused).train(), network.copy()
            assert sorted(tuple(value.shape) for value in module.parameters()) == [(8, 12), (12,)]
            optimiser = torch.optim.AdamW(module.parameters(), 0.01)
            for seed in range(3):
                optimiser.zero_grad()
                module(torch.from_numpy(nets.samples(network, 4, seed)["x"]))[0].square().mean().backward()
                optimiser.step()
            write_back(result, module)
            trained.append(result)
        for name, array in trained[1].tensors.items():
            assert nets.difference(array, trained[0].tensors[name]) < 2e-4
        feeds = nets.samples(network, 3)
        with torch.no_grad():
            got = to_module(trained[0])(torch.from_numpy(feeds["x"]))[0].numpy()
        assert nets.difference(run(trained[0], feeds)["y"], got) < 3e-6
