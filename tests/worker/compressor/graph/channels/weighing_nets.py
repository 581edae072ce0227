"""Products that letters describe, and constants that hold a matrix for each head: networks written node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from tests.worker.compressor.graph.random_builder import Builder
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Network

LENGTH, FEATURES, WIDTH, HEADS, INNER = 6, 5, 16, 4, 8
Layers = Callable[[Builder, str], tuple[str, int]]


def load(layers: Layers, folder: Path) -> tuple[Network, Path]:
    """A linear layer, these layers on (N, LENGTH, WIDTH), and a perceptron, as an upload."""
    net = Builder(np.random.default_rng(0), 17, (LENGTH, FEATURES))
    x, width = layers(net, net.linear("x", FEATURES, WIDTH))
    net.add(net.linear(net.node("Relu", net.linear(x, width, 24)), 24, 3), (LENGTH, 3))
    path = folder / f"{layers.__name__}.onnx"
    onnx.save(net.finish([]), path)
    return import_model(path, "onnx", None)[0], path


def einsum(net: Builder, equation: str, *inputs: str) -> str:
    return net.node("Einsum", *inputs, equation=equation)


def matrices(net: Builder, *shape: int) -> str:
    return net.weight(*shape, scale=0.3)


def _split(net: Builder, x: str) -> str:
    return net.reshape(net.linear(x, WIDTH, HEADS * INNER), 0, 0, HEADS, INNER)


def _attend(net: Builder, q: str, k: str, v: str) -> str:
    """(N, LENGTH, HEADS, INNER) from values of that shape."""
    scores = net.node("Mul", einsum(net, "bihd,bjhd->bhij", q, k), net.constant(np.float32(INNER**-0.5)))
    return einsum(net, "bhij,bjhd->bihd", net.node("Softmax", scores, axis=-1), v)


def attention(net: Builder, x: str) -> tuple[str, int]:
    """Two products of activations; projections are linear layers."""
    y = _attend(net, *(_split(net, x) for _ in range(3)))
    return net.node("Add", x, net.linear(net.reshape(y, 0, 0, -1), HEADS * INNER, WIDTH)), WIDTH


def heads_last(net: Builder, x: str) -> tuple[str, int]:
    """Projections [width, heads, inner] and [heads, inner, width], as Flax has them."""
    q, k, v = (
        net.node(
            "Add", einsum(net, "btm,mhd->bthd", x, matrices(net, WIDTH, HEADS, INNER)), matrices(net, HEADS, INNER)
        )
        for _ in range(3)
    )
    out = einsum(net, "bthd,hdm->btm", _attend(net, q, k, v), matrices(net, HEADS, INNER, WIDTH))
    return net.node("Add", x, out), WIDTH


def heads_first(net: Builder, x: str) -> tuple[str, int]:
    """Projections [heads, width, inner]: each head has channels of its own."""
    q, k, v = (einsum(net, "btm,hmd->bthd", x, matrices(net, HEADS, WIDTH, INNER)) for _ in range(3))
    out = einsum(net, "...hd,hdm->...m", _attend(net, q, k, v), matrices(net, HEADS, INNER, WIDTH))
    return net.node("Add", x, out), WIDTH


def plain(net: Builder, x: str) -> tuple[str, int]:
    """A linear layer with its constant in front, one without an arrow, one that transposes, and a sum."""
    y = net.node("Relu", einsum(net, "oc, btc -> bto", matrices(net, 20, WIDTH), x))
    y = net.node("Relu", einsum(net, "btc,cz", y, matrices(net, 20, 12)))
    y = einsum(net, "btc->bct", y)
    y = net.node("Mul", einsum(net, "bct->bc", y), net.constant(np.float32(0.2)))
    y = einsum(net, "bc,tc->btc", y, matrices(net, LENGTH, 12))
    return y, 12


def stacked(net: Builder, x: str) -> tuple[str, int]:
    """MatMul with [heads, inner, out], as block-diagonal layers have it, and its constant also in front."""
    y = net.node("Transpose", _split(net, x), perm=[0, 2, 1, 3])
    y = net.node("Relu", net.node("MatMul", y, matrices(net, HEADS, INNER, 10)))
    y = net.node("Transpose", y, perm=[0, 1, 3, 2])
    y = net.node("Relu", net.node("MatMul", matrices(net, HEADS, 6, 10), y))
    return net.reshape(net.node("Transpose", y, perm=[0, 3, 1, 2]), 0, 0, -1), HEADS * 6


def experts(net: Builder, x: str) -> tuple[str, int]:
    """One value meets the matrices of all experts, and is added up over them."""
    y = net.node("MatMul", net.node("Unsqueeze", x, net.constant([1])), matrices(net, HEADS, WIDTH, 12))
    y = net.node("Relu", net.node("Add", y, matrices(net, HEADS, 1, 12)))
    y = net.node("MatMul", y, matrices(net, HEADS, 12, 10))
    return net.node("ReduceSum", y, net.constant([1]), keepdims=0), 10


def routed(net: Builder, x: str) -> tuple[str, int]:
    """Experts whose sum is weighted by what a small layer makes of the same value."""
    gates = net.node("Softmax", net.linear(x, WIDTH, HEADS), axis=-1)
    y = net.node("Relu", einsum(net, "btd,edf->btef", x, matrices(net, HEADS, WIDTH, 12)))
    y = einsum(net, "btef,efd->bted", y, matrices(net, HEADS, 12, WIDTH))
    y = net.node("Mul", y, net.node("Unsqueeze", gates, net.constant([3])))
    return net.node("Add", x, net.node("ReduceSum", y, net.constant([2]), keepdims=0)), WIDTH


def vector(net: Builder, x: str) -> tuple[str, int]:
    """A gate from the product with a vector."""
    gate = net.node("Sigmoid", net.node("MatMul", net.linear(x, WIDTH, 12), matrices(net, 12)))
    return net.node("Mul", x, net.node("Unsqueeze", gate, net.constant([2]))), WIDTH


ALL = [attention, heads_last, heads_first, plain, stacked, experts, routed, vector]
