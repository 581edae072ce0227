"""The weights that single numbers can be taken out of: those that a layer multiplies with."""

from __future__ import annotations

from dataclasses import dataclass

from app.spec.schema import Prune
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.network import Network, Node
from worker.compressor.pruning.selection import LEFT_OUT, is_chosen


@dataclass(frozen=True)
class Matrix:
    """A weight tensor of a layer; `inputs` is the axis that is summed over, `outputs` the one of what comes out."""

    layer: str
    node: Node
    tensor: str
    inputs: int
    outputs: int


def matrices_of(network: Network, prune: Prune) -> tuple[list[Matrix], dict[str, str]]:
    """The matrices in graph order, each tensor once, and why layers that the spec leaves out keep all their weights."""
    found, left_out, seen, tied = [], dict[str, str](), set[str](), network.tied()
    for node in network.nodes:
        for matrix in matrices_at(node, network):
            if not is_chosen(node.name, prune):
                left_out[node.name] = LEFT_OUT
            elif tied[matrix.tensor] not in seen:
                found.append(matrix)
            seen.add(tied[matrix.tensor])
    return found, left_out


def matrices_at(node: Node, network: Network) -> list[Matrix]:
    """The matrices that one node multiplies with."""
    return [Matrix(node.name, node, node.inputs[slot], *axes) for slot, *axes in _axes(node, network)]


def _axes(node: Node, network: Network) -> list[tuple[int, int, int]]:
    """`(slot, axis of the inputs, axis of the outputs)` of each weight of the node that is a constant as it is."""
    if node.domain not in ("", "ai.onnx"):
        return []
    shape = {slot: network.tensors[name].shape for slot, name in enumerate(node.inputs) if name in network.tensors}
    found = []
    match node.op:
        case "Conv":
            found = [(1, 1, 0)]
        case "ConvTranspose":
            found = [(1, 0, 1)]
        case "Gemm":
            found = [(0, 0, 1) if node.attributes.get("transA", 0) else (0, 1, 0)]
            found += [(1, 1, 0) if node.attributes.get("transB", 0) else (1, 0, 1)]
        case "MatMul":
            found = [(slot, len(size) - 2 + (slot == 0), len(size) - 1 - (slot == 0)) for slot, size in shape.items()]
        case "LSTM" | "GRU" | "RNN":
            found = [(1, 2, 1), (2, 2, 1)]
    return [row for row in found if len(shape.get(row[0], ())) > 1 and is_float(network.tensors[node.inputs[row[0]]])]
