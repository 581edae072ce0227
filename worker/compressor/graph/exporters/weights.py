"""The weights alone, under the names that they have at home: `weights.safetensors`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from worker.compressor.graph.counts import is_float, sources_of_constants, weights_of
from worker.compressor.graph.evaluation import as_tensor
from worker.compressor.graph.network import Network

#: Slots of BatchNormalization that hold running statistics: no parameters, but part of a state dict.
_STATISTICS = {"BatchNormalization": (3, 4)}


def write_weights(network: Network, path: Path) -> None:
    """Write every weight and running statistic in its own dtype and layout, under the name that it has in the upload.

    So a narrower module of the same classes takes the file by `load_state_dict(load_file(path), strict=True)`. A tensor
    that several layers shared and that was cut differently for each is written once per layer, as `name@layer`.
    """
    tensors = {name: as_tensor(array).contiguous() for name, array in named_weights(network).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def named_weights(network: Network) -> dict[str, np.ndarray]:
    """Weights and running statistics by their names in the uploaded file."""
    tied, copies = network.tied(), dict[str, dict[str, np.ndarray]]()
    for name in (name for name in dict.fromkeys(_tensors(network)) if not network.origins[name].made):
        copies.setdefault(network.origins[name].source, {})[tied[name]] = network.tensors[name]
    found: dict[str, np.ndarray] = {}
    for source, arrays in copies.items():
        for name, array in arrays.items():
            nodes = network.origins[name].nodes or (name,)
            found[source if len(arrays) == 1 else f"{source}@{nodes[0]}"] = array
    return found


def _tensors(network: Network) -> Iterator[str]:
    sources = sources_of_constants(network)
    for node in network.nodes:
        yield from (name for _, name in weights_of(node, sources, network))
        for slot in _STATISTICS.get(node.op, ()):
            name = sources.plain.get(node.inputs[slot]) if slot < len(node.inputs) else None
            if name is not None and is_float(network.tensors[name]):
                yield name
