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

from worker.compressor.graph.channels.layer import Layer
from worker.compressor.graph.channels.parts import labels_of_parts, match_parts, rows_along
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels
    from worker.compressor.graph.walk import Place

_X, _W, _R = 0, 1, 2


def recur(
    walk: Labels, node: Node, vectors: Sequence[int], states: Sequence[Place], places: Sequence[tuple[int, int]]
) -> None:
    """See `walk.Walk.recur`."""
    units = labels_of_parts(walk, node.inputs[_R], 2)
    walk._mark(node, "consumes", units)
    _read_inputs(walk, node)
    for slot in (_W, _R, *vectors):
        name = node.inputs[slot]
        if not walk.is_weight(name):
            walk._pin(units, f"'{node.name}' takes a weight from data")
            continue
        times = walk.shape(name)[1] // walk.shape(node.inputs[_R])[2]
        walk._mark(node, "produces", match_parts(walk, name, 1, np.tile(units, (1, times))))
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
        walk._mark(node, "consumes", match_parts(walk, weight, 2, labels[None]))


def _begin(walk: Labels, node: Node, name: str, axis: int, units: np.ndarray) -> None:
    """The initial state, whose directions lie along `axis`: a constant, the state of another layer, or from outside."""
    if walk.is_weight(name) and (axis == 0 or len(units) == 1):
        walk._mark(node, "follows", match_parts(walk, name, 2, units))
        return
    labels = rows_along(walk, name, axis, 2)
    if labels is None:
        walk._pin(units, f"the state of '{node.name}' begins as '{name}', which is not narrowed")
    else:
        walk._meet(labels, units)


def _layer(units: np.ndarray, direction: int, unit: int, rank: int) -> Layer:
    shape = [1] * rank
    shape[direction], shape[unit] = units.shape
    return Layer(units.reshape(shape), (direction, unit) if len(units) > 1 else (unit,), unit)
