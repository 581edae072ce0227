"""How channels pass through a product with a constant: one matrix, or one for each head, as the letters of its axes say.

A letter of the constant is read where the activation has it too: summed over, or followed where the result keeps it. It
is made where the constant alone has it. Where axis 0 of the constant is one of heads, the channels of each head are its
own, the same number in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worker.compressor.graph.channels.layer import Layer, Term, layer_along, lettered, placed
from worker.compressor.graph.channels.parts import labels_of_parts, match_parts
from worker.compressor.graph.network import Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def weigh(walk: Labels, node: Node, slots: tuple[int, int], terms: tuple[Term, Term], result: Term) -> None:
    """See `walk.Walk.weigh`."""
    (source, weight), (ours, theirs) = (node.inputs[slots[0]], node.inputs[slots[1]]), terms
    for letter in set(ours) & set(theirs):
        walk._begin(node, source, ours.index(letter))
    layers = [lettered(layer, ours, max((*ours, *theirs)) + 1) for layer in walk._layers(source)]
    narrowed = {layer.narrowed for layer in layers}
    made = [letter for letter in theirs if letter in result and letter not in ours]
    heads = _heads(walk.shape(weight), theirs, made, narrowed, set(ours))
    going_on = []
    for layer in layers:
        if layer.narrowed in theirs:
            _read(walk, node, (source, weight), (theirs, result), layer, heads)
        elif layer.narrowed not in result:
            walk._pin(layer.array, f"{node.op} '{node.name}' sums over them")
        if layer.narrowed in result:
            going_on.append(walk._settled(layer, off=set(layer.axes) - set(result)))
    for axis, letter in enumerate(theirs):
        if letter in ours and letter not in narrowed and letter != heads:
            walk._pin(walk._own_or_derived(weight, axis), f"'{source}' is not narrowed")
    for layer in _made(walk, weight, (theirs, result), made, heads):
        walk._mark(node, "produces", layer.array)
        layer = lettered(layer, theirs, max((*ours, *theirs)) + 1)
        going_on.append(walk._settled(layer, off=set(layer.axes) - set(result)))
    walk.layers[node.outputs[0]] = [placed(layer, result) for layer in going_on]


def _heads(shape: Sequence[int], theirs: Term, made: Sequence[int], narrowed: set[int], ours: set[int]) -> int | None:
    """The letter of axis 0 of the constant where that is an axis of heads: no channels itself, it has channels in it."""
    first = theirs[0]
    if shape[0] == 1 or first in narrowed:
        return None
    return first if first in ours or (first in made and len(made) > 1) else None


def _read(
    walk: Labels, node: Node, names: tuple[str, str], terms: tuple[Term, Term], layer: Layer, heads: int | None
) -> None:
    """The constant's entries for these channels: consumed where they are summed over, else they follow."""
    (source, weight), (theirs, result) = names, terms
    axis = theirs.index(layer.narrowed)
    settled = walk._settled(layer, off=set(layer.axes) - {layer.narrowed, heads})
    own = (
        walk._match(weight, axis, settled.line())
        if settled.is_line
        else match_parts(walk, weight, axis, settled.rows())
    )
    if layer.narrowed in result:
        walk._mark(node, "follows", own)
    else:
        walk._read(node, source, weight, own)


def _made(walk: Labels, weight: str, terms: tuple[Term, Term], made: Sequence[int], heads: int | None) -> list[Layer]:
    """Layers of the constant along the axes that it makes, in each head its own."""
    theirs, result = terms
    if weight not in walk.network.tensors:
        return [layer for layer in walk._layers(weight) if theirs[layer.narrowed] in made]
    shape, found = walk.shape(weight), []
    for axis, letter in enumerate(theirs):
        if letter not in made or letter == heads or shape[axis] == 1:
            continue
        if heads in result:
            sizes = [length if at in (0, axis) else 1 for at, length in enumerate(shape)]
            sizes[axis] = -1
            found.append(Layer(labels_of_parts(walk, weight, axis).reshape(sizes), (0, axis), axis))
        else:
            found.append(layer_along(walk._own(weight, axis), axis, len(shape)))
    return found
