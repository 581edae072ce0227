"""Names of layers and weights of networks that come from torch modules."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.network import Network


def mark_made(network: Network, own: Collection[str]) -> None:
    """Tell the constants that the import made from the tensors of the upload, which are called `own`."""
    for name, origin in network.origins.items():
        is_own = origin.source in own or origin.source.startswith("CONSTANTS.")
        network.origins[name] = replace(origin, made=origin.made or not is_own)


def name_layers(network: Network) -> None:
    """Layers are called by the module that owns their first weight; nodes of frozen files keep the exporter's name."""
    sources, taken = sources_of_constants(network), set[str]()
    for node in network.nodes:
        origins = [network.origins[name] for _, name in weights_of(node, sources, network)]
        owners = [o.source for o in origins if not o.made and not o.source.startswith("CONSTANTS.")]
        name = owners[0].rpartition(".")[0] or owners[0] if owners else node.name.strip("/").replace("/", ".")
        base, number = name, 1
        while name in taken:
            number += 1
            name = f"{base}:{number}"
        taken.add(name)
        network.layers[node.outputs[0]] = name
    network.changed()
