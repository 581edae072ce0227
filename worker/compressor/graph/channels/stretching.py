"""Values that repeat one element along an axis, a norm beside what it divides: they get as narrow as what they meet."""

from __future__ import annotations

from worker.compressor.graph.evaluation import Facts
from worker.compressor.graph.network import Network


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
