"""How channels pass through operators that know of heads: attention and rotary positions.

Shape letters: B batch, H heads of a value, L length, D size of a head. A value is [B, H, L, D], or [B, L, H × D] with
the number of heads told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.graph.channels.layer import Layer, layer_along
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def attend(walk: Labels, node: Node, heads: tuple[int, int]) -> None:
    """See `walk.Walk.attend`."""
    names, times = node.inputs[:3], heads[0] // heads[1]
    q, k, v = (_by_head(walk, node, name, heads[slot > 0]) for slot, name in enumerate(names))
    past = any(node.inputs[4:6])
    for rows, other in ((q, k), (k, q), (v, v)):
        if rows is not None and (past or other is None):
            walk._pin(rows, f"{node.op} '{node.name}' meets them with keys or values that are not narrowed")
    if q is not None and k is not None:
        walk._meet(q, np.repeat(k, times, 0))
        walk._contract(node, q, names[:2])
        walk._quota(q)
    if v is not None:
        walk._quota(v)
        walk.layers[node.outputs[0]] = [_joined(walk, node.outputs[0], np.repeat(v, times, 0))]
    for output, rows in zip(node.outputs[1:3], (k, v), strict=False):
        if output and rows is not None:
            walk.layers[output] = [_joined(walk, output, rows)]


def rotate(walk: Labels, node: Node, heads: int) -> None:
    """See `walk.Walk.rotate`."""
    source, output = node.inputs[0], node.outputs[0]
    rows = _by_head(walk, node, source, heads)
    angles = [walk._own_or_derived(name, len(walk.shape(name)) - 1) for name in node.inputs[1:3]]
    if rows is None:
        for own in angles:
            walk._pin(own, f"'{source}' is not narrowed")
        return
    walk._meet(rows, rows[:1])  # all heads are turned by the same angles
    pairs = angles[0]
    count = len(pairs)
    interleaved = node.attributes.get("interleaved", 0)
    halves = (
        [slice(0, 2 * count, 2), slice(1, 2 * count, 2)] if interleaved else [slice(count), slice(count, 2 * count)]
    )
    for half in halves:
        walk._meet(rows[0, half], pairs)
    walk._meet(angles[1], pairs)
    for name, own in zip(node.inputs[1:3], angles, strict=True):
        walk._mark(node, "follows", own)
        rank = len(walk.shape(name))
        walk.layers.setdefault(name, [layer_along(own, rank - 1, rank)])  # one angle at least has to stay
    walk.layers[output] = [_joined(walk, output, rows)]


def _by_head(walk: Labels, node: Node, name: str, heads: int) -> np.ndarray | None:
    """The labels within each head, (H, D); None where there are none. Channels along other axes have to stay."""
    rank = len(walk.shape(name))
    inner = {rank - 1} if rank == 3 else {1, 3}
    for layer in walk._layers(name):
        if layer.narrowed != rank - 1:
            walk._pin(layer.array, f"{node.op} '{node.name}' needs them all")
    found = [
        walk._settled(layer, off=set(layer.axes) - inner) for layer in walk._layers(name) if layer.narrowed == rank - 1
    ]
    if not found:
        return None
    lines = [layer.array.reshape(heads, -1) if rank == 3 else layer.array[0, :, 0] for layer in found]
    for line in lines[1:]:
        walk._meet(lines[0], line)
    return np.broadcast_to(lines[0], (heads, lines[0].shape[1]))


def _joined(walk: Labels, name: str, rows: np.ndarray) -> Layer:
    """The layer of a value whose heads hold these labels."""
    rank = len(walk.shape(name))
    if rank == 3:
        return layer_along(rows.reshape(-1), 2, 3)
    if len(rows) == 1:
        return layer_along(rows[0], 3, 4)
    return Layer(rows[None, :, None], (1, 3), 3)
