"""What a model says about itself: ports, counts, and one row per layer with the reason where it stays whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.counts import count
from worker.compressor.graph.network import Network, Node, Port


def describe(network: Network, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The facts of API.md about a network: inputs, outputs, opset, num_params, macs, macs_at, unsupported, layers.

    `sizes` gives free axes by name; the others are as they were tried at import. JSON-ready.
    """
    shapes = shapes_at(network, sizes)
    counts = count(network, shapes)
    return {
        "inputs": [_port(port, network.sample_shapes[port.name]) for port in network.inputs],
        "outputs": [_port(port) for port in network.outputs],
        "opset": network.opset,
        "num_params": counts.num_params,
        "nonzero_params": counts.nonzero_params,
        "macs": counts.macs,
        "macs_at": {name: list(shape) for name, shape in shapes.items()},
        "unsupported": [],
        "layers": layer_rows(network, analyse(network, shapes)),
    }


def shapes_at(network: Network, sizes: Mapping[str, int] | None = None) -> dict[str, tuple[int, ...]]:
    """Input shapes of one sample with these sizes for the free axes of those names."""
    shapes = {}
    for port in network.inputs:
        tried = network.sample_shapes[port.name]
        names = port.shape or (None,) * len(tried)
        given = [(sizes or {}).get(str(name), size) for name, size in zip(names, tried, strict=True)]
        shapes[port.name] = tuple(given)
    return shapes


def layer_rows(network: Network, analysis: Analysis) -> list[dict[str, Any]]:
    """One row per operator with weights: name, op, shapes, params, macs, prunable, kept_because; in graph order."""
    counted = {row.name: row for row in count(network, _input_shapes(network, analysis)).layers if row.has_weights}
    rows = []
    for node in network.nodes:
        if node.name in counted:
            row = counted.pop(node.name)
            why = analysis.kept_because.get(node.name)
            rows.append(
                {
                    "name": node.name,
                    "op": node.op,
                    "shapes": _shapes(network, analysis, node),
                    "params": row.params,
                    "macs": row.macs,
                    "prunable": why is None,
                    "kept_because": why,
                }
            )
    return rows


def _input_shapes(network: Network, analysis: Analysis) -> dict[str, tuple[int, ...]]:
    return {port.name: analysis.facts.shapes[port.name] for port in network.inputs}


def _shapes(network: Network, analysis: Analysis, node: Node) -> dict[str, Any]:
    given = {name: list(analysis.facts.shapes[name]) for name in node.inputs if name}
    return {
        "inputs": [shape for name, shape in given.items() if name not in network.tensors],
        "weights": {network.origins[name].source: shape for name, shape in given.items() if name in network.tensors},
        "outputs": [list(analysis.facts.shapes[name]) for name in node.outputs if name],
    }


def _port(port: Port, tried: tuple[int, ...] = ()) -> dict[str, Any]:
    """A port whose free axes all have names: files may leave them nameless, or (inputs) tell no shape at all."""
    shape = port.shape or (None,) * len(tried)
    names = ["batch" if axis == 0 else f"dim_{axis}" for axis in range(len(shape))]
    return {
        "name": port.name,
        "dtype": port.dtype,
        "shape": [name if size is None else size for size, name in zip(shape, names, strict=True)],
    }
