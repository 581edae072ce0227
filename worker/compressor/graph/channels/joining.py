"""How labels pass through elementwise operators: what meets belongs together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.graph.channels.layer import Layer, are_one, layer_along, raised, rows_of
from worker.compressor.graph.channels.stretching import is_stretched
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def join(walk: Labels, node: Node) -> None:
    """Elementwise with broadcasting; see `walk.Walk`."""
    rank = len(walk.shape(node.outputs[0]))
    names = [name for name in node.inputs if name]
    if all(walk.is_weight(name) for name in names):
        for name in names:
            walk._label_all(name)
    found: list[Layer] = []
    for name in names:
        found = _with(walk, found, [raised(layer, rank) for layer in walk._layers(name)])
    found += [layer for name in names for layer in _spanned(walk, node, name, rank)]
    for name in names:
        found = [layer for layer in found if face(walk, node, layer, name, rank)]
        if name in walk._derived:
            for layer in walk._layers(name):
                walk._mark(node, "follows", layer.array)
    walk.layers[node.outputs[0]] = found


def _with(walk: Labels, found: list[Layer], own: list[Layer]) -> list[Layer]:
    """Add the layers of one more input, which are not one with each other: inputs and kernel of a flattened weight, say."""
    known, added = found, []
    for layer in own:
        if any(layer.axes == other.axes and np.array_equal(layer.array, other.array) for other in found):
            continue  # of a value that meets itself
        merged = merge(walk, known, layer)
        if len(merged) > len(known):
            added.append(layer)
        else:
            known = merged
    return [*known, *added]


def merge(walk: Labels, found: list[Layer], layer: Layer) -> list[Layer]:
    """Add a layer to those of other inputs at the same places; see `are_one`."""
    for index, other in enumerate(found):
        if are_one(other, layer):
            walk._meet(other.array, layer.array)
            axes = tuple(sorted({*other.axes, *layer.axes}))
            if other.axes == axes or layer.axes == axes:
                both = other if other.axes == axes else layer
            else:
                both = Layer(np.broadcast_arrays(other.array, layer.array)[0].copy(), axes)
            return [*found[:index], both, *found[index + 1 :]]
    return [*found, layer]


def face(walk: Labels, node: Node, layer: Layer, name: str, rank: int) -> bool:
    """What another input has at the places of a layer: the same labels, entries of a constant, or nothing.

    False: its channels have to stay, so there is nothing to say of them from here on.
    """
    shape = (1,) * (rank - len(walk.shape(name))) + walk.shape(name)
    axes = [axis for axis in layer.axes if shape[axis] > 1]
    if not axes or any(are_one(layer, raised(own, rank)) for own in walk._layers(name)):
        return True
    if layer.narrowed not in axes:  # along the blocks nothing is cut
        return True
    if name not in walk.network.tensors and is_stretched(walk.network, walk.facts, name, layer.narrowed - rank):
        less = rank - len(walk.shape(name))
        walk._want(name, [axis - less for axis in axes], layer.narrowed - less)
        return True
    if name not in walk.network.tensors:
        walk._pin(layer.array, f"{node.op} '{node.name}' combines them with '{name}', which is not narrowed")
        return False
    offset = rank - walk.network.tensors[name].ndim
    rows = rows_of(layer, shape, offset)
    if rows is not None:
        walk._mark(node, "follows", walk._align(name, layer.narrowed - offset, rows))
        return True
    line = walk._settled(layer, off=set(layer.axes) - {layer.narrowed}).line()
    walk._mark(node, "follows", walk._align(name, layer.narrowed - offset, line))
    return True


def _spanned(walk: Labels, node: Node, name: str, rank: int) -> list[Layer]:
    """Labels of the axes that a constant alone makes longer than 1: a scale times one number for each sample."""
    array = walk.network.tensors.get(name)
    if array is None or not is_float(array) or name in walk.layers:
        return []
    others = [(1,) * rank, *(walk.shape(n) for n in node.inputs if n and n != name)]
    there = np.broadcast_shapes(*others)
    axes = [axis for axis in range(array.ndim) if array.shape[axis] > there[axis + rank - array.ndim]]
    found = []
    for axis in axes:
        own = walk._own(name, axis)
        walk._mark(node, "follows", own)
        found.append(layer_along(own, axis + rank - array.ndim, rank))
    return found
