"""Labels of what falls into parts: a constant with one matrix for each direction or head, a value with an axis of those.

Shape letters: D directions, heads or other parts, n channels of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def labels_of_parts(walk: Labels, name: str, axis: int) -> np.ndarray:
    """Labels `(D, n)` along an axis of a constant, direct or derived."""
    num_parts = walk.shape(name)[0]
    if name in walk.network.tensors:
        return walk._own(name, axis, num_parts).reshape(num_parts, -1)
    labels = rows_along(walk, name, 0, axis)
    return np.zeros((num_parts, walk.shape(name)[axis]), np.int64) if labels is None else labels


def match_parts(walk: Labels, name: str, axis: int, order: np.ndarray) -> np.ndarray:
    """Let an axis of a constant carry the labels `(D, n)`; returns its own."""
    if name in walk.network.tensors:
        return walk._align(name, axis, order if len(order) > 1 else order[0])
    own = labels_of_parts(walk, name, axis)
    walk._meet(own, order)
    return own


def rows_along(walk: Labels, name: str, parts: int, axis: int) -> np.ndarray | None:
    """Labels `(D, n)` along two axes of a value, all layers there made one; None where it has none."""
    rank, num_parts = len(walk.shape(name)), walk.shape(name)[parts]
    found = [
        walk._settled(layer, off=set(range(rank)) - {parts, axis}).array
        for layer in walk._layers(name)
        if axis in layer.axes
    ]
    for other in found[1:]:
        walk._meet(found[0], other)
    if not found:
        return None
    widest = max(found, key=lambda array: array.size)
    rows = np.moveaxis(widest, (parts, axis), (0, 1)).reshape(widest.shape[parts], -1)
    return np.broadcast_to(rows, (num_parts, rows.shape[1])).copy()
