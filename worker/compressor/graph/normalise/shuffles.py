"""Case 13: Reshape, Transpose and Reshape that only change the order along one axis become a Gather along it.

So ShuffleNet (Zhang et al. 2018, arXiv 1707.01083) mixes its groups. As a reshape it needs rows of equal lengths, which
binds channels to each other; a Gather takes those that are left. Needs `sample_shapes`: it comes when the network was tried.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from worker.compressor.errors import CompressorError
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network, Node, Origin

_Shapes = Mapping[str, tuple[int, ...]]


def apply(network: Network) -> None:
    """Replace every such chain along an axis whose length is fixed, and which is not the first."""
    shapes = observe(network, network.sample_shapes).shapes
    found = [(chain, place) for chain in _chains(network) if (place := _order(*chain, shapes)) is not None]
    others = _shapes_elsewhere(network) if found else None
    if others is None:
        return
    for chain, (order, axis) in found:
        again = _order(*chain, others)
        if again is not None and again[1] == axis and np.array_equal(order, again[0]):
            _replace(network, chain[0].inputs[0], chain[-1].outputs[0], order, axis)
    network.remove_unused()


def _chains(network: Network) -> list[tuple[Node, Node, Node]]:
    """Reshape, Transpose and Reshape, each read by the next alone."""
    readers = network.consumers()
    given_out = {port.name for port in network.outputs}

    def only_reader(node: Node, op: str) -> Node | None:
        found = readers.get(node.outputs[0], [])
        alone = len(found) == 1 and found[0][1] == 0 and node.outputs[0] not in given_out
        return found[0][0] if alone and found[0][0].op == op else None

    chains = []
    for first in network.nodes:
        moves = first.op == "Reshape" and first.inputs[0] not in network.tensors
        turn = only_reader(first, "Transpose") if moves else None
        last = only_reader(turn, "Reshape") if turn is not None else None
        if turn is not None and last is not None and last.outputs[0] not in given_out:
            chains.append((first, turn, last))
    return chains


def _shapes_elsewhere(network: Network) -> _Shapes | None:
    """Shapes with every free axis of the inputs twice as long; None where the network does not take that."""
    feeds = {
        port.name: tuple(
            size if isinstance(fixed, int) else 2 * size
            for size, fixed in zip(tried, port.shape or [None] * len(tried), strict=True)
        )
        for port in network.inputs
        for tried in [network.sample_shapes[port.name]]
    }
    try:
        return observe(network, feeds).shapes
    except CompressorError:
        return None


def _order(first: Node, turn: Node, last: Node, shapes: _Shapes) -> tuple[np.ndarray, int] | None:
    """The places that the output takes along an axis, and the axis; None where the chain does anything else."""
    before, split, after = (shapes[name] for name in (first.inputs[0], first.outputs[0], last.outputs[0]))
    order = turn.attributes.get("perm", range(len(split))[::-1])
    moved = [axis for axis, source in enumerate(order) if axis != source]
    if before != after or not moved or moved[0] == 0 or len(split) <= len(before):
        return None
    start, stop = moved[0], moved[-1] + 1
    behind = len(split) - stop
    if start + 1 + behind != len(before) or before[:start] != split[:start] or before[start + 1 :] != split[stop:]:
        return None
    rows = np.arange(before[start]).reshape(split[start:stop])
    return rows.transpose([axis - start for axis in order[start:stop]]).reshape(-1), start


def _replace(network: Network, source: str, output: str, order: np.ndarray, axis: int) -> None:
    last = next(node for node in network.graph if node.outputs[0].name == output)
    values = [*network.graph.inputs, *(value for node in network.graph for value in node.outputs)]
    data = next(value for value in values if value.name == source)
    name = network.unique_name(f"{output}.order")
    indices = network.add_tensor(name, order.astype(np.int64), Origin(name, order.shape, made=True))
    made = ir.Node("", "Gather", [data, indices], [ir.AttrInt64("axis", axis)], name=last.name)
    old = last.outputs[0]
    made.outputs[0].shape, made.outputs[0].type = old.shape, old.type
    network.graph.insert_before(last, made)
    ir.convenience.replace_all_uses_with(old, made.outputs[0])
    network.graph.remove(last, safe=True)
    made.outputs[0].name = output
    network.changed()
