"""Values that repeat one element along an axis: a norm beside what it divides, states that begin as zeros.

They get as narrow as what they meet. A walk notes where such a value met channels and had none; the next one gives it some.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worker.compressor.graph.evaluation import Facts
from worker.compressor.graph.network import Network, Node

#: Axes of a value along which it has channels of its own, and which of them gets shorter.
Stretch = tuple[tuple[int, ...], int]
#: For values that repeat one element the channels that they are given, one stretch for each axis that gets shorter.
Stretches = Mapping[str, tuple[Stretch, ...]]


def is_stretched(network: Network, facts: Facts, name: str, axis: int) -> bool:
    """Whether the value repeats one element along the axis: an Expand made it longer, or all elements are one number."""
    node = next((node for node in network.nodes if name in node.outputs), None)
    if node is None or node.op == "ConstantOfShape":
        return node is not None
    source = facts.shapes[node.inputs[0]] if node.op == "Expand" else None
    axis %= len(facts.shapes[name])
    if source is None:
        return False
    before = axis - len(facts.shapes[name]) + len(source)
    return before < 0 or source[before] == 1


def is_zero(node: Node, network: Network) -> bool:
    """Whether every element of what the node makes is zero, whatever its shape."""
    if node.op == "ConstantOfShape":
        return not np.any(node.attributes.get("value", 0))
    array = network.tensors.get(node.inputs[0]) if node.op == "Expand" else None
    return array is not None and not array.any()
