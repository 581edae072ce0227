"""How labels pass through a concatenation: end to end along its axis, together or row by row along the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.graph.channels.joining import face, merge
from worker.compressor.graph.channels.layer import Layer, layer_along
from worker.compressor.graph.channels.parts import rows_along
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def concatenate(walk: Labels, node: Node, axis: int) -> None:
    """See `walk.Walk.concatenate`."""
    output = node.outputs[0]
    rank = len(walk.shape(output))
    axis %= rank
    if _is_stacked(walk, node, axis):
        walk.layers[output] = _stacked(walk, node, axis)
        if _are_states(walk, node):
            walk.states.add(output)
        return
    names = [name for name in node.inputs if 0 not in walk.shape(name)]  # what is empty adds nothing
    among_constants = all(walk.is_weight(name) for name in names)
    for name in names if among_constants else ():
        walk._label_all(name)
    labelled = [name for name in names if among_constants or name not in walk.network.tensors]
    lines = [walk._along(name, axis) if name in labelled else None for name in names]
    rest: list[Layer] = []
    for name in names:
        for layer in walk._layers(name):
            if axis not in layer.axes:
                rest = merge(walk, rest, layer)
    for layer in rest:
        for name in names:
            face(walk, node, layer, name, rank)
    walk.layers[output] = rest
    if any(line is not None for line in lines):
        whole = [
            np.zeros(walk.shape(name)[axis], np.int64) if line is None else line
            for line, name in zip(lines, names, strict=True)
        ]
        walk.layers[output] = [*rest, layer_along(np.concatenate(whole), axis, rank)]


def _is_stacked(walk: Labels, node: Node, axis: int) -> bool:
    """Whether a concatenation puts directions, layers or heads beside each other: each keeps its own units inside."""
    layers = [layer for name in node.inputs for layer in walk._layers(name)]
    is_block = _are_states(walk, node) or any(axis in layer.axes for layer in layers)
    return is_block and not any(layer.narrowed == axis for layer in layers)


def _are_states(walk: Labels, node: Node) -> bool:
    """Whether all that is concatenated are states of recurrent operators, or weights made of others."""
    names = node.inputs
    return all(name in walk.states or (walk.is_weight(name) and name not in walk.network.tensors) for name in names)


def _stacked(walk: Labels, node: Node, axis: int) -> list[Layer]:
    """The layers of such a concatenation: for each axis that gets shorter one, with a row per position along `axis`."""
    narrowed = sorted({layer.narrowed for name in node.inputs for layer in walk._layers(name) if layer.axes})
    found = []
    for other in narrowed:
        rows = [rows_along(walk, name, axis, other) for name in node.inputs]
        whole = [
            np.zeros((walk.shape(name)[axis], walk.shape(name)[other]), np.int64) if row is None else row
            for row, name in zip(rows, node.inputs, strict=True)
        ]
        array = np.concatenate(whole)
        shape = [1] * len(walk.shape(node.outputs[0]))
        shape[axis], shape[other] = array.shape
        array = (array if axis < other else array.T).reshape(shape)
        found.append(Layer(array, tuple(sorted((axis, other))), other))
    return found
