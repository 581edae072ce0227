"""Nodes in the order in which they can run: onnxruntime sorts them itself, and some tools rely on it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import onnx


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put each node behind those that it reads, else leave the order as it is; cycles stay for the checker to find."""
    nodes = list(graph.node)
    order = _order(nodes)
    if order != list(range(len(nodes))):
        del graph.node[:]
        graph.node.extend(nodes[index] for index in order)


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _read(node) if name in makers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, needed in enumerate(needs):
        for maker in needed:
            readers[maker].append(index)
    missing = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    found = []
    while ready:
        index = heapq.heappop(ready)
        found.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    return found if len(found) == len(nodes) else list(range(len(nodes)))


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that the node reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read(inner)
