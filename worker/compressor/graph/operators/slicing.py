"""Operators that take parts of a tensor: Slice, Split, Gather."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Int, Operator, Rewrites, register
from worker.compressor.graph.walk import Walk

_FAR = 1 << 31  # beyond every length, within int64: "to the end" in Slice


def _move(walk: Walk, node: Node) -> None:
    walk.move(node)


def _split(call: Call) -> Any:
    x, axis, num_outputs = call.tensor(0), call.attribute("axis", 0), len(call.node.outputs)
    sizes = call.ints(1) if call.has(1) else call.attribute("split")
    if sizes is None:
        length = x.size(axis)
        step = (length + num_outputs - 1) // num_outputs
        starts: list[Int] = [step * i for i in range(num_outputs)]
        return tuple(
            torch.narrow(x, axis, s, step if i < num_outputs - 1 else length - s) for i, s in enumerate(starts)
        )
    parts, start = [], 0
    for size in sizes:
        parts.append(torch.narrow(x, axis, start, size))
        start = start + size
    return tuple(parts)


def _split_known(node: Node, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    axis, count = node.attributes.get("axis", 0), len(node.outputs)
    sizes = arrays[1].tolist() if len(arrays) > 1 else node.attributes.get("split")
    if sizes is None:
        sizes = [-(-arrays[0].shape[axis] // count)] * count
    return tuple(np.split(arrays[0], np.cumsum([int(size) for size in sizes])[:-1], axis))


def _slice(call: Call) -> Any:
    x, rank = call.tensor(0), call.rank(0)
    if call.node.since_version < 10:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        axes, steps = call.attribute("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = call.ints(1), call.ints(2)
        axes = call.ints(3) if call.has(3) else list(range(len(starts)))
        steps = call.ints(4) if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if isinstance(step, int) and step < 0:
            x = _backwards(x, start, end, axis % rank, step)
        else:
            last = min(end, _FAR) if isinstance(end, int) else end
            x = torch.ops.aten.slice(x, axis % rank, start, last, step)
    return x


def _backwards(x: Any, start: Int, end: Int, axis: int, step: int) -> Any:
    """The reversed axis forwards: position i of n lies at n - 1 - i there, which for torch is -i - 1."""
    begin, last = -start - 1, -end - 1
    if isinstance(begin, int):
        begin = max(begin, -_FAR)
    if isinstance(last, int):
        last = min(last, _FAR)
    return torch.ops.aten.slice(torch.flip(x, [axis]), axis, begin, last, -step)


def _slice_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    if node.since_version < 10:
        starts, ends = node.attributes["starts"], node.attributes["ends"]
        axes, steps = node.attributes.get("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = arrays[1].tolist(), arrays[2].tolist()
        axes = arrays[3].tolist() if len(arrays) > 3 else range(len(starts))
        steps = arrays[4].tolist() if len(arrays) > 4 else [1] * len(starts)
    where: list[slice] = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # numpy reads a far negative end as ONNX does: before the first element
        where[int(axis)] = slice(int(start), None if step < 0 and end < -_FAR + 1 else int(end), int(step))
    return arrays[0][tuple(where)]


def _gather(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    axis = axis % call.rank(0)
    known = call.known(1)
    if known is not None and known.ndim == 0:
        return torch.select(x, axis, known.item())
    if known is not None and known.ndim == 1 and (known >= 0).all():
        return torch.index_select(x, axis, call.tensor(1))
    indices = call.tensor(1)
    indices = torch.where(indices < 0, indices + x.size(axis), indices)
    if axis == 0 and call.rank(0) == 2:
        return functional.embedding(indices, x)
    flat = torch.index_select(x, axis, torch.reshape(indices, [-1]))
    sizes = [x.size(i) for i in range(axis)] + [indices.size(i) for i in range(call.rank(1))]
    return torch.reshape(flat, sizes + [x.size(i) for i in range(axis + 1, call.rank(0))])


def _gather_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.take(arrays[0], arrays[1].astype(np.int64), node.attributes.get("axis", 0))


def _gather_channels(walk: Walk, node: Node) -> None:
    if walk.numbers(node, 1) is None:
        axis = node.attributes.get("axis", 0) % len(walk.shape(node.inputs[0]))
        walk.pick(node, [axis], len(walk.shape(node.inputs[1])))
    else:
        walk.move(node)


def _slice_channels(walk: Walk, node: Node) -> None:
    _, axes, steps = _slicing(lambda slot: walk.numbers(node, slot), node)
    rank = len(walk.shape(node.inputs[0]))
    for axis, step in zip(axes, steps, strict=True):
        if step > 1:  # every second channel stays every second one where pairs go as a whole
            walk.bind(node, axis % rank, step)
    walk.move(node, slides=[axis % rank for axis, step in zip(axes, steps, strict=True) if step < 0])


def _slicing(numbers: Callable[[int], list[int] | None], node: Node) -> tuple[list[int], list[int], list[int]]:
    """Starts, axes and steps of a Slice in any version."""
    if node.since_version < 10:
        starts = list(node.attributes["starts"])
        return starts, list(node.attributes.get("axes", range(len(starts)))), [1] * len(starts)
    starts = numbers(1) or []
    return starts, numbers(3) or list(range(len(starts))), numbers(4) or [1] * len(starts)


def _slice_rewrite(view: CutView, node: Node) -> Rewrites:
    starts, axes, steps = _slicing(lambda slot: view.numbers(node, slot), node)
    given = node.since_version >= 10
    ends = view.numbers(node, 2) if given else node.attributes["ends"]
    starts_now, ends_now = (view.numbers_now(node, 1), view.numbers_now(node, 2)) if given else (starts, ends)
    new_starts: list[int | None] = [None] * len(starts)
    new_ends: list[int | None] = [None] * len(starts)
    before, rank = view.shape(node.inputs[0]), len(view.shape(node.inputs[0]))
    for index, (start, end, axis, step) in enumerate(zip(starts, ends or [], axes, steps, strict=True)):
        axis %= rank
        chosen = range(before[axis])[start:end:step]
        if step > 0 and view.shape_now(node.inputs[0])[axis] != before[axis] and chosen:  # nothing stays nothing
            now = view.positions(node.inputs[0], axis, chosen)
            new_starts[index], new_ends[index] = min(now), max(now) + 1  # interleaved rows may have changed places
        elif starts_now and ends_now and (starts_now[index], ends_now[index]) != (start, end):
            new_starts[index], new_ends[index] = start, end  # computed from a length that was cut
    if all(start is None for start in new_starts):
        return {}
    return {1: new_starts, 2: new_ends} if given else {"starts": new_starts, "ends": new_ends}


def _split_rewrite(view: CutView, node: Node) -> Rewrites:
    source, axis = node.inputs[0], node.attributes.get("axis", 0)
    axis %= len(view.shape(source))
    is_whole = view.shape_now(source)[axis] == view.shape(source)[axis]
    if is_whole and view.numbers_now(node, 1) == view.numbers(node, 1):
        return {}
    sizes = [view.shape_wanted(name)[axis] for name in node.outputs]
    return {"split" if node.since_version < 13 else 1: sizes}


def _gather_rewrite(view: CutView, node: Node) -> Rewrites:
    source, axis = node.inputs[0], node.attributes.get("axis", 0)
    axis %= len(view.shape(source))
    length = view.shape(source)[axis]
    indices = view.numbers(node, 1)
    if indices is None or view.shape_now(source)[axis] == length:
        return {}
    positions = np.array(view.positions(source, axis, [index % length for index in indices]), np.int64)
    rank = len(view.shape(node.inputs[1]))
    wanted = view.shape_wanted(node.outputs[0])[axis : axis + rank]
    # a table of indices stays a table: the grouping keeps its rows alike
    return {1: positions.reshape(wanted if positions.size == np.prod(wanted) else -1)}


register(
    Operator(
        op="Split",
        versions=(2, 11, 13, 18),
        run=_split,
        channels=_move,
        rewrite=_split_rewrite,
        known=_split_known,
        data=(0,),
    )
)

register(
    Operator(
        op="Slice",
        versions=(1, 10, 11, 13),
        run=_slice,
        channels=_slice_channels,
        rewrite=_slice_rewrite,
        known=_slice_known,
        data=(0,),
    )
)

register(
    Operator(
        op="Gather",
        versions=(1, 11, 13),
        run=_gather,
        channels=_gather_channels,
        rewrite=_gather_rewrite,
        known=_gather_known,
        weights=(0,),
    )
)
