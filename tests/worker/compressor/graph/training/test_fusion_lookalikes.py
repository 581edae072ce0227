"""What only looks like a case of fusion stays as it is."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from tests.worker.compressor.graph import nets
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
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module


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
