"""Take residual branches out of a network, and the silenced original that the shortened one must compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worker.compressor.graph.counts import is_float
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.residuals import Residual
from worker.compressor.graph.silencing import Weight

_NOTHING = np.empty(0, np.int64)


def shorten(network: Network, removed: Sequence[Residual]) -> Network:
    """The network without these branches: each sum is an Identity of its skip, under the name that it had.

    `network` is not changed. What was lost is said in `lost`: every weight that nothing reads any more, and those of
    `silencers` for the nodes that went where others still read them.
    """
    result, slots = network.copy(), {residual.add: residual.slot for residual in removed}
    for node in result.graph:
        slot = slots.get(node.outputs[0].name or "")
        if slot is not None:
            node.replace_input_with(0, node.inputs[slot])
            node.resize_inputs(1)
            node.op_type = "Identity"
    result.remove_unused()
    silent = {weight.tensor: weight for residual in removed for weight in residual.silencers}
    gone = [name for name in network.tensors if name not in result.tensors]
    result.lost = (
        *network.lost,
        *(_lost(network.origins[name], name in silent) for name in gone if _has_slices(network, name)),
        *(_lost_for(network.origins[name], removed, name) for name in silent if name in result.tensors),
    )
    return result


def silenced(network: Network, removed: Sequence[Residual]) -> Network:
    """The whole network with the weights that end these branches set to zero: what the shortened one must compute."""
    result = network.copy()
    nodes = {node.outputs[0].name: node for node in result.graph}
    for weight in _weights(removed):
        # A tensor of its own, because others may read it as well.
        zeros = result.add_tensor(f"{weight.tensor}.silent", np.zeros_like(result.tensors[weight.tensor]))
        nodes[weight.node].replace_input_with(weight.slot, zeros)
    result.changed()
    return result


def _weights(removed: Sequence[Residual]) -> list[Weight]:
    return list(dict.fromkeys(weight for residual in removed for weight in residual.silencers))


def _has_slices(network: Network, name: str) -> bool:
    array = network.tensors[name]
    return array.ndim > 0 and is_float(array) and not network.origins[name].made


def _lost(origin: Origin, is_silent: bool) -> Origin:
    """Nothing of the tensor is left."""
    zero = origin.zero | {0} if is_silent else origin.zero
    return replace(origin, kept={**origin.kept, 0: _NOTHING}, zero=zero)


def _lost_for(origin: Origin, removed: Sequence[Residual], name: str) -> Origin:
    """Nothing of it is left for the nodes that went."""
    layers = tuple(dict.fromkeys(weight.layer for weight in _weights(removed) if weight.tensor == name))
    return replace(origin, nodes=layers, kept={0: _NOTHING}, zero=frozenset({0}))
