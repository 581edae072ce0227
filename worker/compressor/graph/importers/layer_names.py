"""Layer names of networks that come from torch modules."""

from __future__ import annotations

from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.network import Network


def name_layers(network: Network) -> None:
    """Layers are called by the module that owns their first weight; nodes of frozen files keep the exporter's name."""
    sources, taken = sources_of_constants(network), set[str]()
    for node in network.nodes:
        owners = [network.origins[name].source for _, name in weights_of(node, sources, network)]
        owners = [owner for owner in owners if not owner.startswith("CONSTANTS.")]
        name = owners[0].rpartition(".")[0] or owners[0] if owners else node.name.strip("/").replace("/", ".")
        base, number = name, 1
        while name in taken:
            number += 1
            name = f"{base}:{number}"
        taken.add(name)
        network.layers[node.outputs[0]] = name
    network.changed()
