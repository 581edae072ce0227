"""Names that nodes and values of a graph do not have yet."""

from __future__ import annotations

import onnx_ir as ir


def value_names(graph: ir.Graph) -> set[str]:
    """What the values of the graph and of its subgraphs are called."""
    parts = [graph, *graph.subgraphs()]
    owned = {value.name or "" for part in parts for value in (*part.inputs, *part.initializers.values())}
    return owned | {value.name or "" for node in graph.all_nodes() for value in node.outputs}


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken; it is taken afterwards."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    taken.add(found)
    return found
