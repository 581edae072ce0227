"""Parameters and multiply-accumulates, as API.md ("what the figures mean") defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of

#: A weight behind one of these is still that weight.
_PASSED_THROUGH = {"Identity", "Reshape", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Flatten"}


@dataclass(frozen=True)
class LayerCount:
    """One operator that has weights or multiplies: its counts, and the shape of its first output for one sample."""

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


def sources_of_constants(network: Network) -> dict[str, str]:
    """For each value that is a constant, also behind Identity, Reshape and the like, the tensor that it is."""
    found = {name: name for name in network.tensors}
    for node in network.nodes:
        if node.op in _PASSED_THROUGH and node.domain == "" and node.inputs[0] in found:
            found[node.outputs[0]] = found[node.inputs[0]]
    return found


def weights_of(node: Node, sources: Mapping[str, str], network: Network) -> dict[int, str]:
    """Weight slot → tensor name: the float constants, scalars excepted, in the slots that hold weights."""
    found = {}
    for slot in operator_of(node).weights:
        source = sources.get(node.inputs[slot]) if slot < len(node.inputs) else None
        if source is not None and is_float(network.tensors[source]) and network.tensors[source].ndim > 0:
            found[slot] = source
    return found


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
        new = {tied[name] for name in weights.values()} - seen
        seen |= new
        nonzero += sum(int(np.count_nonzero(network.tensors[name])) for name in new)
        params = sum(network.tensors[name].size for name in new)
        macs = operator.macs(node, shapes) if operator.macs else 0
        if weights or macs:
            layers.append(LayerCount(node.name, node.op, shapes[node.outputs[0]], params, macs, bool(weights)))
    return Counts(sum(row.params for row in layers), nonzero, sum(row.macs for row in layers), layers)
