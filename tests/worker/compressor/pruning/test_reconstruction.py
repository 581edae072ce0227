"""The refit against numpy's lstsq on the augmented system, and on a small network."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from tests.worker.compressor.graph import nets, residual_nets
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Node
from worker.compressor.graph.residuals import Residuals
from worker.compressor.graph.shortening import shorten
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.reconstruction.layers import Convolution, Product
from worker.compressor.pruning.reconstruction.least_squares import RIDGE, Gram, solve_wide
from worker.compressor.pruning.reconstruction.lockstep import reconstruct
from worker.compressor.pruning.reconstruction.rectified import auxiliary

RNG = np.random.default_rng(0)


def by_lstsq(inputs, outputs, start, with_bias, ridge=0.01):
    """`min |Y - UW - 1b|² + λ|W - W0|²` as one least-squares problem."""
    if with_bias:
        mean_in, mean_out = inputs.mean(0), outputs.mean(0)
        inputs, outputs = inputs - mean_in, outputs - mean_out
    damping = np.sqrt(ridge * np.diag(inputs.T @ inputs).mean())
    rows = np.concatenate([inputs, damping * np.eye(inputs.shape[1])])
    weight = np.linalg.lstsq(rows, np.concatenate([outputs, damping * start]), rcond=None)[0]
    return weight, mean_out - mean_in @ weight if with_bias else None


def problem(rows, width, outputs, groups=2):
    return (
        RNG.standard_normal((groups, rows, width)) + 1,
        RNG.standard_normal((groups, rows, outputs)) * 2 - 3,
        RNG.standard_normal((groups, width, outputs)),
    )


@pytest.mark.parametrize("with_bias", [True, False])
class TestSolve:
    def test_it_is_the_least_squares_solution(self, with_bias):
        inputs, outputs, start = problem(200, 9, 4)
        gram = Gram(2, 9, 4)
        for at in range(0, 200, 33):
            gram.add(*(torch.from_numpy(a[:, at : at + 33]) for a in (inputs, outputs)))
        weight, bias = gram.solve(torch.from_numpy(start), with_bias=with_bias)
        for g in range(2):
            want, want_bias = by_lstsq(inputs[g], outputs[g], start[g], with_bias)
            np.testing.assert_allclose(weight[g], want, rtol=1e-6, atol=1e-8)
            if with_bias:
                np.testing.assert_allclose(bias[g], want_bias, rtol=1e-6)

    def test_the_wide_form_is_the_same_solution(self, with_bias):
        inputs, outputs, start = problem(20, 60, 3)
        weight, bias = solve_wide(
            *(torch.from_numpy(a.astype(np.float32)) for a in (inputs, outputs, start)), with_bias=with_bias
        )
        for g in range(2):
            want, want_bias = by_lstsq(inputs[g], outputs[g], start[g], with_bias)
            np.testing.assert_allclose(weight[g], want, rtol=1e-3, atol=1e-3)
            if with_bias:
                np.testing.assert_allclose(bias[g], want_bias, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("rows", [200, 12])
    def test_with_a_mask_each_output_is_fitted_on_what_it_has(self, rows, with_bias):
        inputs, outputs, start = problem(rows, 16, 4)
        mask = RNG.random(start.shape) < 0.5
        start = start * mask
        if rows > 16:
            gram = Gram(2, 16, 4)
            gram.add(torch.from_numpy(inputs), torch.from_numpy(outputs))
            weight, bias = gram.solve(torch.from_numpy(start), with_bias=with_bias, mask=torch.from_numpy(mask))
        else:
            tensors = (torch.from_numpy(a.astype(np.float32)) for a in (inputs, outputs, start))
            weight, bias = solve_wide(*tensors, with_bias=with_bias, mask=torch.from_numpy(mask))
        assert not weight[torch.from_numpy(~mask)].any()
        for g in range(2):
            mean_in, mean_out = (a[g].mean(0) if with_bias else np.zeros(a.shape[2]) for a in (inputs, outputs))
            x, y = inputs[g] - mean_in, outputs[g] - mean_out
            damping = np.sqrt(0.01 * np.diag(x.T @ x).mean())
            for o in range(4):
                own = mask[g, :, o]
                system = np.concatenate([x[:, own], damping * np.eye(own.sum())])
                wanted = np.concatenate([y[:, o], damping * start[g, own, o]])
                want = np.linalg.lstsq(system, wanted, rcond=None)[0]
                np.testing.assert_allclose(weight[g][own, o], want, rtol=2e-3, atol=2e-3)
                if with_bias:
                    np.testing.assert_allclose(bias[g, o], mean_out[o] - mean_in[own] @ want, rtol=2e-3, atol=2e-3)

    def test_inputs_that_are_not_finite_change_nothing(self, with_bias):
        inputs, outputs, start = problem(50, 5, 2)
        inputs[0, 3, 3] = np.nan
        gram = Gram(2, 5, 2)
        gram.add(torch.from_numpy(inputs), torch.from_numpy(outputs))
        weight, _ = gram.solve(torch.from_numpy(start), with_bias=with_bias)
        np.testing.assert_array_equal(weight[0], start[0])
        assert not np.allclose(weight[1], start[1])


class Weights:
    def __init__(self, weight):
        self.tensors = {"w": weight}


def conv_node(**attributes):
    return Node("conv", "Conv", "", 11, ("x", "w"), ("y",), attributes)


class TestLayers:
    @pytest.mark.parametrize(("groups", "options"), [
        (1, {"pads": [1, 1, 1, 1]}),
        (2, {"strides": [2, 2], "pads": [1, 0, 1, 2]}),
        (4, {"dilations": [2, 2]}),
        (1, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ])  # fmt: skip
    def test_a_convolution_is_a_product_of_its_columns(self, groups, options):
        x, weight = (
            torch.from_numpy(RNG.standard_normal(s).astype(np.float32)) for s in ((3, 4, 9, 9), (8, 4 // groups, 3, 3))
        )
        layer = Convolution(conv_node(group=groups, kernel_shape=[3, 3], **options), Weights(weight.numpy()))
        begin_h, begin_w, end_h, end_w = (
            options.get("pads", [0, 0, 0, 0]) if "auto_pad" not in options else [1, 1, 1, 1]
        )
        padded = F.pad(x, (begin_w, end_w, begin_h, end_h))
        want = F.conv2d(padded, weight, None, options.get("strides", 1), 0, options.get("dilations", 1), groups)
        got = torch.bmm(layer.unfold(x), layer.matrix(weight))
        torch.testing.assert_close(got, layer.rows(want), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.stored(layer.matrix(weight)), weight)

    def test_a_convolution_over_one_axis(self):
        x, weight = (torch.from_numpy(RNG.standard_normal(s).astype(np.float32)) for s in ((3, 4, 20), (8, 4, 5)))
        layer = Convolution(conv_node(kernel_shape=[5], strides=[2], pads=[2, 2]), Weights(weight.numpy()))
        want = F.conv1d(x, weight, None, 2, 2)
        torch.testing.assert_close(
            torch.bmm(layer.unfold(x), layer.matrix(weight)), layer.rows(want), rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize(
        ("op", "turned", "shape"), [("Gemm", 1, (5, 3)), ("Gemm", 0, (3, 5)), ("MatMul", 0, (3, 5))]
    )
    def test_a_product(self, op, turned, shape):
        x, weight = (torch.from_numpy(RNG.standard_normal(s).astype(np.float32)) for s in ((6, 3), shape))
        layer = Product(
            Node("fc", op, "", 13, ("x", "w"), ("y",), {"transB": turned} if op == "Gemm" else {}),
            Weights(weight.numpy()),
        )
        want = x @ (weight.t() if turned else weight)
        torch.testing.assert_close(torch.bmm(layer.unfold(x), layer.matrix(weight)), layer.rows(want))
        torch.testing.assert_close(layer.stored(layer.matrix(weight)), weight)


@pytest.mark.parametrize("penalty", [0.01, 0.3, 1.0, 10.0])
def test_auxiliary_outputs_are_the_best_of_a_fine_grid(penalty):
    wanted, given = RNG.standard_normal((2, 60)) * 2
    grid = np.linspace(-8, 8, 16001)
    found = auxiliary(torch.from_numpy(wanted), torch.from_numpy(given), penalty).numpy()

    def cost(z, y, p):
        return (max(y, 0.0) - np.maximum(z, 0.0)) ** 2 + penalty * (z - p) ** 2

    for z, y, p in zip(found, wanted, given, strict=True):
        assert cost(z, y, p) <= cost(grid, y, p).min() + 1e-6


def test_statistics_that_are_computed_from_data_are_not_measured(tmp_path):
    onnx.save(nets.row_normalised(), tmp_path / "m.onnx")
    network, _ = import_model(tmp_path / "m.onnx", "onnx", None)
    analysis = analyse(network, network.sample_shapes)
    narrow = cut(network, analysis, {0: [0, 1, 4, 6]}).network
    feeds = {"x": RNG.standard_normal((64, 4)).astype(np.float32)}
    _, repair = reconstruct(network, narrow, feeds, refit=True, batchnorm=True)
    assert repair.measured == [] and len(repair.refitted) == 1


def test_a_bias_in_an_add_behind_a_product_is_fitted_with_it(tmp_path):
    network, _ = nets.load(residual_nets.PostNorm, tmp_path)
    branch = Residuals(network, network.sample_shapes).branches[0]
    short, feeds = shorten(network, [branch]), nets.samples(network, 64)
    fitted, repair = reconstruct(network, short, feeds, refit=True, batchnorm=False)
    assert "/down/MatMul" in repair.refitted
    product = next(node for node in short.nodes if node.name == "/down/MatMul")
    add = next(node for node in short.nodes if product.outputs[0] in node.inputs)
    total = next(node for node in short.nodes if add.outputs[0] in node.inputs)
    skip = next(name for name in total.inputs if name != add.outputs[0])

    def seen(of, name):
        made = of.copy()
        made.graph.outputs.append(next(v for node in made.graph for v in node.outputs if v.name == name))
        made.changed()
        value = run(made, feeds)[name]
        return value.reshape(-1, value.shape[-1]).astype(np.float64)

    inputs, wanted = seen(fitted, product.inputs[0]), seen(network, total.outputs[0]) - seen(fitted, skip)
    vector = next(name for name in add.inputs if name in short.tensors)
    weight, bias = by_lstsq(inputs, wanted, short.tensors[product.inputs[1]].astype(np.float64), True, ridge=RIDGE)
    np.testing.assert_allclose(fitted.tensors[product.inputs[1]], weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fitted.tensors[vector], bias, rtol=1e-3, atol=1e-4)
