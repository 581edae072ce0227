"""Networks around the operators that know of heads, which torch's older exporter does not write: node by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.worker.compressor.graph.random_builder import Builder
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Network

LENGTH, FEATURES, WIDTH = 6, 5, 16


@dataclass(frozen=True)
class Heads:
    """Projections, heads, an output projection and a residual; `inner` is the size of a head, `value` that of a value."""

    num_heads: int = 4
    num_keys: int = 4
    inner: int = 8
    value: int = 8
    rank: int = 3
    opset: int = 24
    attributes: dict[str, Any] = field(default_factory=dict)
    turned: dict[str, Any] | None = None
    by_position: bool = False
    mask: bool = False
    past: bool = False


def build(kind: Heads, folder: Path) -> tuple[Network, Path]:
    """The network of this description, as an upload."""
    net = Builder(np.random.default_rng(0), kind.opset, (LENGTH, FEATURES))
    x = net.linear("x", FEATURES, WIDTH)
    sizes = {"q": (kind.num_heads, kind.inner), "k": (kind.num_keys, kind.inner), "v": (kind.num_keys, kind.value)}
    made = {name: _split(net, kind, net.linear(x, WIDTH, a * b), a, b) for name, (a, b) in sizes.items()}
    if kind.turned is not None:
        made |= {name: _turn(net, kind, made[name], sizes[name][0]) for name in ("q", "k")}
    attributes = kind.attributes
    if kind.rank == 3:
        attributes = attributes | {"q_num_heads": kind.num_heads, "kv_num_heads": kind.num_keys}
    mask = [net.constant(net.rng.standard_normal((LENGTH, LENGTH)).astype(np.float32))] if kind.mask else []
    past = ["", _past(net, kind, kind.inner), _past(net, kind, kind.value)] if kind.past else mask
    y = net.node("Attention", made["q"], made["k"], made["v"], *past, outputs=3 if kind.past else 1, **attributes)
    if kind.rank == 4:
        y = net.reshape(net.node("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, -1)
    out = net.node("Add", x, net.linear(y, kind.num_heads * kind.value, WIDTH))
    net.add(net.linear(net.node("Relu", net.linear(out, WIDTH, 24)), 24, 3), (LENGTH, 3))
    path = folder / "heads.onnx"
    onnx.save(net.finish([]), path)
    return import_model(path, "onnx", None)[0], path


def _split(net: Builder, kind: Heads, x: str, heads: int, size: int) -> str:
    if kind.rank == 3:
        return x
    return net.node("Transpose", net.reshape(x, 0, 0, heads, size), perm=[0, 2, 1, 3])


def _past(net: Builder, kind: Heads, size: int) -> str:
    """Keys or values of two earlier positions, (N, heads, 2, size), which nothing in the network makes."""
    return net.node("Expand", net.constant(np.ones((1, kind.num_keys, 2, size), np.float32)), _batch_of(net, 4))


def _turn(net: Builder, kind: Heads, x: str, heads: int) -> str:
    pairs = (kind.turned or {}).get("rotary_embedding_dim", kind.inner) // 2
    angles = np.arange(LENGTH)[:, None] * 2.0 ** -np.arange(pairs)[None] + 0.3
    attributes = dict(kind.turned or {}) | ({"num_heads": heads} if kind.rank == 3 else {})
    tables = [net.constant(made.astype(np.float32)) for made in (np.cos(angles), np.sin(angles))]
    if kind.by_position:
        return net.node("RotaryEmbedding", x, *tables, _positions(net), **attributes)
    rows = [net.node("Expand", net.node("Unsqueeze", t, net.constant([0])), _batch_of(net)) for t in tables]
    return net.node("RotaryEmbedding", x, *rows, **attributes)


def _positions(net: Builder) -> str:
    """(N, LENGTH) numbers of positions, made from data that is always the same."""
    zeros = net.node("Mul", net.node("ReduceSum", "x", net.constant([2]), keepdims=0), net.constant(np.float32(0)))
    return net.node("Cast", net.node("Add", zeros, net.constant(np.arange(LENGTH, dtype=np.float32))), to=7)


def _batch_of(net: Builder, rank: int = 3) -> str:
    """A shape that repeats for each sample."""
    size = net.node("Slice", net.node("Shape", "x"), net.constant([0]), net.constant([1]))
    return net.node("Concat", size, net.constant([1] * (rank - 1)), axis=0)
