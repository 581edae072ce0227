"""Each case of fusion: what is fused computes the same with the same gradients, and what only looks alike stays as it is."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.channels import attention_nets, normed_nets
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module, write_back

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


def norm_bare(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


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


def heads(layer, x):
    return layer(x).view(x.size(0), 6, 2, 4).transpose(1, 2)


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


def bias_of_one(m, x):
    return x @ m.inwards + m.one


def bias_from_data(m, x):
    return x @ m.outwards.t() + x.mean(-1, keepdim=True)


def bias_of_two_axes(m, x):
    return x @ m.inwards @ m.outwards + m.plane


def bias_that_adds_an_axis(m, x):
    return x[:, 0] @ m.inwards + m.shift.view(1, 1, 12)


def product_read_twice(m, x):
    product = x @ m.inwards
    return (product + m.shift) * product


def rounded_root(m, x):
    return x * (1 + torch.erf(x / 1.4142)) * 0.5


def not_halved(m, x):
    return x * (1 + torch.erf(x / math.sqrt(2)))


def another_argument(m, x):
    return x * (1 + torch.erf(torch.relu(x) / math.sqrt(2))) * 0.5


def curve_read_elsewhere(m, x):
    curve = torch.erf(x / math.sqrt(2))
    return x * (1 + curve) * 0.5 + curve


def square_for_cube(m, x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 2))))


def rounded_factor(m, x):
    return 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * torch.pow(x, 3))))


def gate_of_another(m, x):
    return x * torch.sigmoid(x * 1.702)


def clip_elsewhere(m, x):
    return x * torch.clip(x + 3, 0, 5) / 6.0


def clip_of_another(m, x):
    return x * torch.clip(x * 2 + 3, 0, 6) / 6.0


def gate_read_twice(m, x):
    gate = torch.sigmoid(x)
    return x * gate + gate


def norm_over_first(m, x):
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-5)


def norm_of_two_spans(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean((1, 2), keepdim=True) + 1e-5)


def norm_not_centred(m, x):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def norm_of_cubes(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(3).mean(-1, keepdim=True).abs() + 1e-5)


def norm_of_a_number(m, x):
    centred = 1.0 - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)


def norm_with_centre_read(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) + centred


def norm_inverted(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) / (centred + 9)


def softmax_over_queries(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3), 2) @ v


def chances_read_elsewhere(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    chances = torch.softmax(q @ k.transpose(2, 3), -1)
    return chances @ v + chances.sum(-1, keepdim=True)


def mask_before_scale(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax((q @ k.transpose(2, 3) + m.causal) / 2.0, -1) @ v


def scale_for_each_query(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3) * m.plane[:, :1], -1) @ v


def mask_that_widens(m, x):
    q, k, v = (heads(layer, x)[:, :1] for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k.transpose(2, 3) + x.view(-1, 2, 6, 4).mean(3, keepdim=True), -1) @ v


def one_key_for_all(m, x):
    q, k, v = (heads(layer, x) for layer in (m.q, m.k, m.v))
    return torch.softmax(q @ k[:, :1].transpose(2, 3), -1) @ v


ALIKE = [
    (LINEAR, [bias_of_one, bias_from_data, bias_of_two_axes, bias_that_adds_an_axis, product_read_twice]),
    (GELU, [rounded_root, not_halved, another_argument, curve_read_elsewhere, square_for_cube, rounded_factor]),
    (functional.silu, [gate_of_another, gate_read_twice]),
    (functional.hardswish, [clip_elsewhere, clip_of_another]),
    (NORM, [norm_over_first, norm_of_two_spans, norm_not_centred, norm_of_cubes, norm_with_centre_read, norm_inverted]),
    (NORM, [norm_of_a_number]),
    (ATTENTION, [softmax_over_queries, chances_read_elsewhere, mask_before_scale, scale_for_each_query]),
    (ATTENTION, [mask_that_widens, one_key_for_all]),
]


class TestWhatLooksAlike:
    @pytest.mark.parametrize(
        ("target", "function"),
        [(target, function) for target, functions in ALIKE for function in functions],
        ids=lambda value: getattr(value, "__name__", ""),
    )
    def test_stays_as_it_is(self, target, function, tmp_path):
        network, _ = spelled(function, tmp_path)
        assert calls(to_module(network), target) == 0
        assert_same(network)

    def test_a_scale_of_one_element_is_no_weight_of_a_norm(self, tmp_path):
        network, _ = spelled(lambda m, x: norm_bare(m, x) * m.single, tmp_path)
        module = to_module(network)
        assert [node.args[2] for node in module.graph.nodes if node.target is NORM] == [None]
        assert_same(network)

    def test_a_division_by_zero_is_left_to_torch(self, tmp_path):
        network, _ = spelled(lambda m, x: torch.clip(x / 0.0 * 0.5, -1.0, 1.0), tmp_path)
        x = torch.from_numpy(nets.samples(network)["x"])
        assert torch.equal(to_module(network)(x)[0], torch.sign(x))

    def test_a_value_that_is_asked_for_is_still_there(self, tmp_path):
        """The erf in the middle is an output of the network."""
        nodes = [
            helper.make_node("Div", ["x", "root"], ["d"]),
            helper.make_node("Erf", ["d"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["a"]),
            helper.make_node("Mul", ["x", "a"], ["m"]),
            helper.make_node("Mul", ["m", "half"], ["y"]),
        ]
        numbers = {"root": math.sqrt(2), "one": 1.0, "half": 0.5}
        initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
        for outputs, count in ((["y"], 1), (["y", "e"], 0)):
            x, *ports = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 5]) for n in ("x", *outputs))
            graph = helper.make_graph(nodes, "g", [x], ports, initializers)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
            onnx.save(model, tmp_path / "e.onnx")
            network, _ = import_model(tmp_path / "e.onnx", "onnx", None)
            module = to_module(network)
            assert calls(module, GELU) == count
            feeds = nets.samples(network)
            for wanted, got in zip(nets.reference(model, feeds), module(torch.from_numpy(feeds["x"])), strict=True):
                assert nets.difference(wanted, got.numpy()) < 2e-6
