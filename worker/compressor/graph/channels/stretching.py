"""Values that repeat one element along an axis, a norm beside what it divides: they get as narrow as what they meet.

And constants that make an axis longer themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.graph.channels.layer import Layer, layer_along
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.evaluation import Facts
from worker.compressor.graph.network import Network, Node

if TYPE_CHECKING:
    from worker.compressor.graph.channels.labels import Labels


def is_stretched(network: Network, facts: Facts, name: str, axis: int) -> bool:
    """Whether an Expand repeats an element along the axis (counted from the end), for one reader alone.

    A second reader might need the length that it had.
    """
    makers = [node for node in network.nodes if node.op == "Expand" and node.outputs[0] == name]
    num_readers = sum(node.inputs.count(name) for node in network.nodes)
    if not makers or num_readers != 1 or any(port.name == name for port in network.outputs):
        return False
    source = facts.shapes[makers[0].inputs[0]]
    return len(source) < -axis or source[axis] == 1


def spanned(walk: Labels, node: Node, name: str, rank: int) -> list[Layer]:
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
