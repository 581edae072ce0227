"""How labels pass through recurrent operators.

A hidden unit of a direction is one channel: it has its rows in every gate of W, R, the biases and peepholes, its column
in R, which reads it back, its initial state, and its place in the outputs. Directions keep different units, but the same
number of them, because `hidden_size` is one number.

Shape letters: D directions, G gates, H hidden units, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.graph.layer import Layer
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.labels import Labels
    from worker.compressor.graph.walk import Place

_X, _W, _R = 0, 1, 2


def recur(
    walk: Labels, node: Node, vectors: Sequence[int], states: Sequence[Place], places: Sequence[tuple[int, int]]
) -> None:
    """See `walk.Walk.recur`."""
    units = _of_parts(walk, node.inputs[_R], 2)
    walk._mark(node, "consumes", units)
    _read_inputs(walk, node)
    for slot in (_W, _R, *vectors):
        name = node.inputs[slot]
        if not walk.is_weight(name):
            walk._pin(units, f"'{node.name}' takes a weight from data")
            continue
        times = walk.shape(name)[1] // walk.shape(node.inputs[_R])[2]
        walk._mark(node, "produces", _matched(walk, name, 1, np.tile(units, (1, times))))
    if len(units) > 1:
        walk._quota(units)
    for slot, axis in states:
        _begin(walk, node, node.inputs[slot], axis, units)
    for output, (direction, unit) in zip(node.outputs, places, strict=False):
        if output:
            walk.layers[output] = [_layer(units, direction, unit, len(walk.shape(output)))]
            walk.states.add(output)


def _read_inputs(walk: Labels, node: Node) -> None:
    """Both directions sum over the same inputs; labels that lie elsewhere (over time) have to stay."""
    source, weight = node.inputs[_X], node.inputs[_W]
    last = len(walk.shape(source)) - 1
    labels = walk._along(source, last)
    for layer in walk._layers(source):
        if last not in layer.axes:
            walk._pin(layer.array, f"{node.op} '{node.name}' reads them one after the other")
    if labels is None:
        walk._pin(walk._own_or_derived(weight, 2), f"'{source}' is not narrowed")
    elif weight in walk.network.tensors:
        walk._mark(node, "consumes", walk._match(weight, 2, labels))
    else:
        walk._mark(node, "consumes", _matched(walk, weight, 2, labels[None]))


def _begin(walk: Labels, node: Node, name: str, axis: int, units: np.ndarray) -> None:
    """The initial state, whose directions lie along `axis`: a constant, the state of another layer, or from outside."""
    if walk.is_weight(name) and (axis == 0 or len(units) == 1):
        walk._mark(node, "follows", _matched(walk, name, 2, units))
        return
    labels = rows_along(walk, name, axis, 2)
    if labels is None:
        walk._pin(units, f"the state of '{node.name}' begins as '{name}', which is not narrowed")
    else:
        walk._meet(labels, units)


def _of_parts(walk: Labels, name: str, axis: int) -> np.ndarray:
    """Labels `(D, n)` along an axis of a constant, direct or derived."""
    num_parts = walk.shape(name)[0]
    if name in walk.network.tensors:
        return walk._own(name, axis, num_parts).reshape(num_parts, -1)
    labels = rows_along(walk, name, 0, axis)
    return np.zeros((num_parts, walk.shape(name)[axis]), np.int64) if labels is None else labels


def _matched(walk: Labels, name: str, axis: int, order: np.ndarray) -> np.ndarray:
    """Let an axis of a constant carry the labels `(D, n)`; returns its own."""
    if name in walk.network.tensors:
        return walk._align(name, axis, order if len(order) > 1 else order[0])
    own = _of_parts(walk, name, axis)
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


def _layer(units: np.ndarray, direction: int, unit: int, rank: int) -> Layer:
    shape = [1] * rank
    shape[direction], shape[unit] = units.shape
    return Layer(units.reshape(shape), (direction, unit) if len(units) > 1 else (unit,), unit)
