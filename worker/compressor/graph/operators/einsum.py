"""Einsum: products and sums over axes that letters name."""

from __future__ import annotations

import math
from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, Shapes, register
from worker.compressor.graph.walk import Walk

_MOST_INPUTS = 16


def _einsum(call: Call) -> Any:
    equation = call.attribute("equation").replace(" ", "")
    return torch.einsum(equation, [call.tensor(slot) for slot in range(len(call.node.inputs))])


def _einsum_channels(walk: Walk, node: Node) -> None:
    walk.pin(node, f"the Einsum '{node.name}' sums over axes that letters name")


def _einsum_macs(node: Node, shapes: Shapes) -> int:
    """The sizes of all letters multiplied; each axis that an ellipsis stands for is a letter of its own."""
    sizes: dict[str, int] = {}
    terms = node.attributes["equation"].replace(" ", "").split("->")[0].split(",")
    for term, name in zip(terms, node.inputs, strict=True):
        before, dots, after = term.partition("...")
        shape = shapes[name]
        hidden = len(shape) - len(before) - len(after)
        letters = [*before, *[f".{hidden - i}" for i in range(hidden if dots else 0)], *after]
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # one of them may be 1 and broadcast
    return math.prod(sizes.values())


register(
    Operator(
        op="Einsum",
        versions=(12, 28),
        run=_einsum,
        channels=_einsum_channels,
        macs=_einsum_macs,
        weights=tuple(range(_MOST_INPUTS)),
    )
)
