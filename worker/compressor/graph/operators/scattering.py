"""Operators that read or write single elements by index: GatherElements, GatherND, Scatter*, TensorScatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, register
from worker.compressor.graph.proxies import record
from worker.compressor.graph.walk import Walk

_REDUCED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _by_index(walk: Walk, node: Node) -> None:
    walk.pin(node, f"{node.op} '{node.name}' reads or writes them by index")


def _positions(call: Call, x: Any, indices: Any, axis: int) -> Any:
    """The indices, those from the end counted from the start."""
    known = call.known(1)
    if known is not None and known.dtype != object and (known >= 0).all():
        return indices.to(torch.int64)
    return torch.where(indices < 0, indices + x.size(axis), indices).to(torch.int64)


def _gather_elements(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 0) % call.rank(0)
    return torch.gather(x, axis, _positions(call, x, call.tensor(1), axis))


def _scatter_elements(call: Call) -> Any:
    x, axis, updates = call.tensor(0), call.attribute("axis", 0) % call.rank(0), call.tensor(2)
    positions, how = _positions(call, x, call.tensor(1), axis), call.attribute("reduction", "none")
    if how == "none":
        return torch.scatter(x, axis, positions, updates)
    return torch.scatter_reduce(x, axis, positions, updates, _REDUCED[how])


def _gather_nd_channels(walk: Walk, node: Node) -> None:
    indices = walk.shape(node.inputs[1])
    if walk.numbers(node, 1) is not None and _is_of_one_axis(node, indices):
        walk.move(node)
    else:
        walk.pick(node, range(node.attributes.get("batch_dims", 0) + indices[-1]), len(indices) - 1)


def _is_of_one_axis(node: Node, indices: Sequence[int]) -> bool:
    """Whether whole slices along axis 0 are taken."""
    return indices[-1] == 1 and not node.attributes.get("batch_dims", 0)


def _gather_nd_rewrite(view: CutView, node: Node) -> Rewrites:
    indices, length = view.numbers(node, 1), view.shape(node.inputs[0])[0]
    is_cut = view.shape_now(node.inputs[0])[0] != length
    if indices is None or not is_cut or not _is_of_one_axis(node, view.shape(node.inputs[1])):
        return {}
    positions = np.array(view.positions(node.inputs[0], 0, [index % length for index in indices]), np.int64)
    sizes = view.shape_wanted(node.outputs[0])[: len(view.shape(node.inputs[1])) - 1]
    return {1: positions.reshape(*sizes, 1)}


def _columns(x: Any, indices: Any, count: int, first: int) -> list[Any]:
    """The last axis of the indices as one index tensor per axis of `x` from `first` on, none negative."""
    columns = []
    for number in range(count):
        column = torch.select(indices, -1, number).to(torch.int64)
        columns.append(torch.where(column < 0, column + x.size(first + number), column))
    return columns


def _num_columns(call: Call) -> int:
    """How many axes the rows of the indices address; the length of their last axis does not depend on the input."""
    return int(call.observed(call.node.inputs[1])[-1])


def _gather_nd(call: Call) -> Any:
    x, indices, batch_axes = call.tensor(0), call.tensor(1), call.attribute("batch_dims", 0)
    columns: list[Any] = []
    for axis in range(batch_axes):
        shape = [-1 if other == axis else 1 for other in range(call.rank(1) - 1)]
        columns.append(torch.reshape(torch.arange(x.size(axis), device=x.device), shape))
    columns += _columns(x, indices, _num_columns(call), batch_axes)
    return torch.ops.aten.index(x, columns)


def _scatter_nd(call: Call) -> Any:
    x, indices, updates = call.tensor(0), call.tensor(1), call.tensor(2)
    count, how = _num_columns(call), call.attribute("reduction", "none")
    columns = _columns(x, indices, count, 0)
    if how in ("none", "add"):
        return torch.index_put(x, columns, updates, how == "add")
    return record(scatter_rows, x, columns, updates, _REDUCED[how])


def scatter_rows(x: torch.Tensor, columns: list[torch.Tensor], updates: torch.Tensor, how: str) -> torch.Tensor:
    """`x` with the updates combined into its slices `x[columns]`; `how` as in `torch.scatter_reduce`."""
    count, place = 1, torch.zeros_like(columns[0])
    for axis, column in enumerate(columns):
        place = place * x.size(axis) + column
        count = count * x.size(axis)
    rows = x.reshape(count, -1)
    index = place.reshape(-1, 1).expand(-1, rows.size(1))
    return torch.scatter_reduce(rows, 0, index, updates.reshape(-1, rows.size(1)), how).reshape(x.shape)


def _scatter_nd_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    if node.attributes.get("reduction", "none") != "none" or arrays[1].dtype == object:
        return None
    result = arrays[0].copy() if arrays[2].dtype != object else arrays[0].astype(object)
    result[tuple(np.moveaxis(arrays[1], -1, 0))] = arrays[2]
    return result


def _gather_nd_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    if node.attributes.get("batch_dims", 0) or arrays[1].dtype == object:
        return None
    return np.asarray(arrays[0][tuple(np.moveaxis(arrays[1], -1, 0))])


def _tensor_scatter(call: Call) -> Any:
    """A key-value cache: the update is written behind what each sample has already."""
    x, update, axis = call.tensor(0), call.tensor(1), call.attribute("axis", -2) % call.rank(0)
    positions = torch.arange(update.size(axis), device=x.device)
    positions = torch.reshape(positions, [-1] + [1] * (call.rank(0) - 1 - axis))
    if call.has(2):
        written = torch.reshape(call.tensor(2), [-1] + [1] * (call.rank(0) - 1))
        positions = positions + written
    if call.attribute("mode", "linear") == "circular":
        positions = torch.remainder(positions, x.size(axis))
    return torch.scatter(x, axis, positions.expand_as(update), update)


register(Operator(op="GatherElements", versions=(11, 13), run=_gather_elements, channels=_by_index))
register(
    Operator(
        op="GatherND",
        versions=(11, 12, 13),
        run=_gather_nd,
        channels=_gather_nd_channels,
        rewrite=_gather_nd_rewrite,
        known=_gather_nd_known,
        weights=(0,),
    )
)
register(Operator(op="Scatter", versions=(9, 11), run=_scatter_elements, channels=_by_index))
register(Operator(op="ScatterElements", versions=(11, 13, 16, 18), run=_scatter_elements, channels=_by_index))
register(
    Operator(op="ScatterND", versions=(11, 13, 16, 18), run=_scatter_nd, channels=_by_index, known=_scatter_nd_known)
)
register(Operator(op="TensorScatter", versions=(24,), run=_tensor_scatter, channels=_by_index))
