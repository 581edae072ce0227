"""Parameters and multiply-accumulates, as API.md ("what the figures mean") defines them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of

#: A weight behind one of these is still that weight.
_PASSED_THROUGH = {"Identity", "Reshape", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Flatten"}
_ASSEMBLED = {"Slice", "Split", "Concat"}


@dataclass(frozen=True)
class LayerCount:
    """One operator that has weights or multiplies: its counts, and the shape of its first output for one sample.

    `has_weights` is also true of one whose weights are made of constants, and counted where these are read.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    params: int
    macs: int
    has_weights: bool


@dataclass(frozen=True)
class Counts:
    """Counts of a whole network; `layers` in graph order, a shared tensor in the layer that reads it first."""

    num_params: int
    nonzero_params: int
    macs: int
    layers: list[LayerCount]


@dataclass(frozen=True)
class Sources:
    """Which tensor a value is: `plain` behind Identity, Reshape and the like, `assembled` also behind Slice and Concat.

    `made` are all values that are computed from constants alone, the constants among them.
    """

    plain: Mapping[str, str]
    assembled: Mapping[str, tuple[str, ...]]
    made: AbstractSet[str]


def sources_of_constants(network: Network) -> Sources:
    """For each value that is a constant, or made of constants by moving their elements, the tensors that it is."""
    plain = {name: name for name in network.tensors}
    assembled: dict[str, tuple[str, ...]] = {name: (name,) for name in network.tensors}
    made = set(network.tensors)
    for node in network.nodes:
        if node.inputs and all(name in made or not name for name in node.inputs):
            made.update(node.outputs)
        if node.domain != "":
            continue
        if node.op in _PASSED_THROUGH and node.inputs[0] in plain:
            plain[node.outputs[0]] = plain[node.inputs[0]]
        parts = node.inputs if node.op == "Concat" else node.inputs[:1]
        if node.op in _PASSED_THROUGH | _ASSEMBLED and all(name in assembled for name in parts):
            tensors = tuple(dict.fromkeys(tensor for name in parts for tensor in assembled[name]))
            assembled.update(dict.fromkeys(node.outputs, tensors))
    return Sources(plain, assembled, made)


def weights_of(node: Node, sources: Sources, network: Network) -> list[tuple[int, str]]:
    """Weight slots and tensor names: the float constants, scalars excepted, in the slots that hold weights.

    Recurrent operators may have several in a slot: exporters put gates and directions together by Slice and Concat.
    """
    operator = operator_of(node)
    found: list[tuple[int, str]] = []
    for slot in operator.weights:
        name = node.inputs[slot] if slot < len(node.inputs) else ""
        tensors = (sources.plain[name],) if name in sources.plain else sources.assembled.get(name, ())
        if name in sources.plain or operator.assembles:
            found += [(slot, tensor) for tensor in tensors if _is_weight(network.tensors[tensor])]
    return found


def is_layer(node: Node, sources: Sources, network: Network) -> bool:
    """Whether the node has weights, be they made of constants that others read (a weight that is standardised).

    Of products (MatMul) that cannot be told: what is made of constants may be an operand like any other.
    """
    if weights_of(node, sources, network):
        return True
    slots = operator_of(node).weights
    return 0 not in slots and any(node.inputs[slot] in sources.made for slot in slots if slot < len(node.inputs))


def _is_weight(array: np.ndarray) -> bool:
    return is_float(array) and array.ndim > 0


def is_float(array: np.ndarray) -> bool:
    """Whether the array holds floating point numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def count(network: Network, feeds_shape: Mapping[str, tuple[int, ...]]) -> Counts:
    """Counts at these input shapes, whose first axes should be 1 (one sample)."""
    shapes = observe(network, feeds_shape).shapes
    sources, tied = sources_of_constants(network), network.tied()
    seen: set[str] = set()
    layers, nonzero = [], 0
    for node in network.nodes:
        operator = operator_of(node)
        weights = weights_of(node, sources, network)
        new = {tied[name] for _, name in weights} - seen
        seen |= new
        nonzero += sum(int(np.count_nonzero(network.tensors[name])) for name in new)
        params = sum(network.tensors[name].size for name in new)
        macs = operator.macs(node, shapes) if operator.macs else 0
        if weights or macs:
            has_weights = is_layer(node, sources, network)
            layers.append(LayerCount(node.name, node.op, shapes[node.outputs[0]], params, macs, has_weights))
    return Counts(sum(row.params for row in layers), nonzero, sum(row.macs for row in layers), layers)
