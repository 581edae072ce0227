"""Operators whose result depends on an order or on what is found: TopK, Unique, NonZero, Compress, OneHot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _by_data(walk: Walk, node: Node) -> None:
    walk.pin(node, f"{node.op} '{node.name}' picks by what the values are")


def _top_k(call: Call) -> Any:
    axis = call.attribute("axis", -1)
    count = call.attribute("k") if call.node.since_version < 10 else call.ints(1)[0]
    # a stable sort, because of equal values ONNX takes the first
    ordered = torch.sort(call.tensor(0), stable=True, dim=axis, descending=bool(call.attribute("largest", 1)))
    return torch.narrow(ordered[0], axis, 0, count), torch.narrow(ordered[1], axis, 0, count)


def _unique(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis")
    if axis is None:
        values, inverse, counts = _three(torch.ops.aten._unique2(torch.flatten(x), True, True, True))
        axis = 0
    else:
        axis %= call.rank(0)
        values, inverse, counts = _three(torch.ops.aten.unique_dim(x, axis, True, True, True))
    inverse = torch.flatten(inverse)
    order = torch.arange(inverse.size(0), device=x.device)
    length = inverse.size(0)
    first = torch.scatter_reduce(torch.full_like(counts, length), 0, inverse, order, "amin")
    if call.attribute("sorted", 1):
        return values, first, inverse, counts
    by_place = torch.argsort(first)
    place = torch.argsort(by_place)
    return (
        torch.index_select(values, axis, by_place),
        torch.index_select(first, 0, by_place),
        torch.index_select(place, 0, inverse),
        torch.index_select(counts, 0, by_place),
    )


def _three(results: Any) -> tuple[Any, Any, Any]:
    return results[0], results[1], results[2]


def _non_zero(call: Call) -> Any:
    return torch.transpose(torch.nonzero(call.tensor(0)), 0, 1)


def _non_zero_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    return None if arrays[0].dtype == object else np.array(np.nonzero(arrays[0]), np.int64)


def _compress(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis")
    if axis is None:
        x, axis = torch.flatten(x), 0
    return torch.index_select(x, axis, torch.flatten(torch.nonzero(call.tensor(1))))


def _compress_channels(walk: Walk, node: Node) -> None:
    if walk.numbers(node, 1) is None or "axis" not in node.attributes:
        _by_data(walk, node)
        return
    walk.close(node, [node.attributes["axis"]], f"Compress '{node.name}' picks channels by position")
    walk.move(node)


def _one_hot(call: Call) -> Any:
    axis, depth = call.attribute("axis", -1), call.ints(1)[0]
    axis = axis % (call.rank(0) + 1)
    indices = call.tensor(0).to(torch.int64)
    classes = torch.arange(depth, device=indices.device)
    classes = torch.reshape(classes, [-1] + [1] * (call.rank(0) - axis))
    hot = torch.unsqueeze(torch.where(indices < 0, indices + depth, indices), axis) == classes
    values = call.tensor(2)
    return torch.where(hot, torch.select(values, 0, 1), torch.select(values, 0, 0))


def _one_hot_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    indices, depth, values = arrays
    if indices.dtype == object or depth.dtype == object:
        return None
    classes = np.arange(int(depth.reshape(-1)[0]))
    hot = np.where(indices < 0, indices + len(classes), indices)[..., None] == classes
    return np.moveaxis(values[hot.astype(np.int64)], -1, node.attributes.get("axis", -1))


register(
    Operator(op="TopK", versions=(1, 10, 11, 24), run=_top_k, channels=_by_data, data=(0,)),
)
register(Operator(op="Unique", versions=(11, 28), run=_unique, channels=_by_data))
register(Operator(op="NonZero", versions=(9, 13), run=_non_zero, channels=_by_data, known=_non_zero_known))
register(Operator(op="Compress", versions=(9, 11, 28), run=_compress, channels=_compress_channels))
register(
    Operator(op="OneHot", versions=(9, 11, 28), run=_one_hot, channels=_by_data, known=_one_hot_known, data=(0, 2))
)
