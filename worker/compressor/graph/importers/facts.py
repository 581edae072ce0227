"""What an ONNX file cannot say about a network that was converted: kept beside it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.compressor.graph.importers.stored import StoredModel
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.normalise import listed_inputs, shared_vectors


def write_facts(network: Network) -> dict[str, Any]:
    """Layer names, the source of each tensor, the shapes at which the import was tried, how it is called; JSON-ready."""
    return {
        "layers": dict(network.layers),
        "tensors": {
            name: {"source": origin.source, "nodes": origin.nodes, "made": origin.made}
            for name, origin in network.origins.items()
            if origin.source != name or origin.nodes or origin.made
        },
        "sample_shapes": {name: list(shape) for name, shape in network.sample_shapes.items()},
        "structure": network.structure,
    }


def read_facts(path: Path, facts: Mapping[str, Any]) -> Network:
    """The network of a graph that `exporters.onnx` wrote for us, with the facts put back."""
    graph = StoredModel(path).as_model()
    listed_inputs.apply(graph)  # written again for IR 3
    tensors = {}
    for name, value in graph.graph.initializers.items():
        assert value.const_value is not None
        tensors[name] = value.const_value.numpy()
        value.const_value = None
    given = facts.get("tensors", {})
    origins = {
        name: Origin(
            given[name]["source"], array.shape, _names(given[name]["nodes"]), made=given[name].get("made", False)
        )
        if name in given
        else Origin(name, array.shape)
        for name, array in tensors.items()
    }
    shapes = {name: tuple(shape) for name, shape in facts.get("sample_shapes", {}).items()}
    layers, structure = facts.get("layers"), facts.get("structure")
    network = Network(graph, tensors, origins=origins, layers=layers, sample_shapes=shapes, structure=structure)
    shared_vectors.apply(network)  # equal copies are written as one
    return network


def _names(nodes: list[str] | None) -> tuple[str, ...] | None:
    return None if nodes is None else tuple(nodes)
