"""Case 6: a vector that several operators read becomes a copy for each.

Exporters merge biases and scales that happen to be equal, which would bind layers that have nothing to do with each
other. The copies remember their source and stay one parameter as long as they are equal (`Network.tied`), so nothing
is lost where the sharing was meant. Shared matrices and kernels are tied on purpose, and stay one tensor.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from worker.compressor.graph.network import Network

#: A vector that is read part by part (the gates of a bias) is one all the same.
_PARTS = {"Slice", "Split"}


def apply(network: Network) -> None:
    """Give every reading operator its own copy of a shared float vector, and say in `origins` whose it is."""
    sharers: dict[str, list[str]] = {}
    for name, origin in network.origins.items():
        sharers.setdefault(origin.source, []).append(name)
    for source, copies in sharers.items():
        if network.tensors[copies[0]].ndim == 1 and network.tensors[copies[0]].dtype.kind == "f":
            _split(network, source, copies)


def _split(network: Network, source: str, copies: list[str]) -> None:
    array, origin = network.tensors[copies[0]], network.origins[copies[0]]
    reads = [(node, slot, name) for name in copies for node, slot in _readers(network, name)]
    if len({node for node, _, _ in reads}) < 2 or any(node.op_type in _PARTS for node, _, _ in reads):
        return
    owners: dict[str, tuple[str, ...]] = {}
    for node, slot, name in reads:
        layer = network.layers.get(node.outputs[0].name or "") or node.name or node.outputs[0].name or ""
        if name in owners and owners[name] != (layer,):
            value = network.add_tensor(f"{source}.{layer}", array)
            node.replace_input_with(slot, value)
            name = value.name or ""
        owners[name] = (layer,)
        network.origins[name] = replace(origin, nodes=(layer,))
    network.changed()


def _readers(network: Network, name: str) -> list[tuple[ir.Node, int]]:
    return [(use.node, use.idx) for use in network.graph.initializers[name].uses()]
