"""Which weights, set to zero, make a value zero: what a branch that is taken out can be compared with in the upload."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from worker.compressor.graph.channels.zeros import FROM_ZERO_TO_ZERO
from worker.compressor.graph.counts import Sources, is_float
from worker.compressor.graph.network import Network, Node

#: The slots whose constants make the output zero, where all of them are zero.
_SLOTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "RMSNormalization": (1,),
}  # fmt: skip
#: Zero where one operand is, and where all are.
_PRODUCTS, _SUMS = {"MatMul", "Mul"}, {"Add", "Sub", "Sum", "Concat", "Max", "Min", "Mean"}


@dataclass(frozen=True)
class Weight:
    """A tensor that one node reads: the node by its layer name and first output, and the input slot."""

    tensor: str
    layer: str
    node: str
    slot: int


def silencers(
    value: str, makers: Mapping[str, Node], network: Network, sources: Sources, living: AbstractSet[str]
) -> tuple[Weight, ...] | None:
    """The weights nearest to the value that make it zero, None where there are none such.

    `living` are the nodes (by first output) that stay: what one of these makes of a tensor is not to be touched.
    """
    return _Walk(makers, network, sources, living).zero(value)


@dataclass(frozen=True)
class _Walk:
    makers: Mapping[str, Node]
    network: Network
    sources: Sources
    living: AbstractSet[str]

    def zero(self, value: str) -> tuple[Weight, ...] | None:
        """The weights that make a computed value zero."""
        node = self.makers.get(value)
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op in _SLOTS:
            return self._all(node, [slot for slot in _SLOTS[node.op] if slot < len(node.inputs) and node.inputs[slot]])
        if node.op == "Gemm":
            first = 0 if node.inputs[0] in self.sources.plain else 1
            return self._all(node, [slot for slot in (first, 2) if slot < len(node.inputs) and node.inputs[slot]])
        if node.op in _PRODUCTS:
            found = [weights for slot in (0, 1) if (weights := self._operand(node, slot)) is not None]
            return min(found, key=len, default=None)
        if node.op in _SUMS:
            return self._all(node, list(range(len(node.inputs))))
        if node.op in FROM_ZERO_TO_ZERO or node.op in ("Div", "Gather"):
            return self._operand(node, 0)
        return None

    def _all(self, node: Node, slots: list[int]) -> tuple[Weight, ...] | None:
        found: list[Weight] = []
        for slot in slots:
            weights = self._operand(node, slot)
            if weights is None:
                return None
            found += weights
        return tuple(dict.fromkeys(found))

    def _operand(self, node: Node, slot: int) -> tuple[Weight, ...] | None:
        name = node.inputs[slot]
        tensor = self.sources.plain.get(name)
        if tensor is None:
            return self.zero(name)
        array = self.network.tensors[tensor]
        while name != tensor:  # behind a Transpose, say, which reads it
            node, slot = self.makers[name], 0
            name = node.inputs[0]
        if array.ndim == 0 or not is_float(array) or node.outputs[0] in self.living:
            return None
        return (Weight(tensor, node.name, node.outputs[0], slot),)
