"""Einsum: products and sums over axes that letters name."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    shapes = [walk.shape(name) for name in node.inputs]
    terms, result = _letters(node.attributes["equation"].replace(" ", ""), shapes)
    weights = [walk.is_weight(name) for name in node.inputs]
    if any(len(set(term)) < len(term) for term in terms) or len(terms) > 2 or all(weights):
        walk.pin(node, f"the Einsum '{node.name}' takes diagonals, or more than two factors")
    elif len(terms) == 1:
        _einsum_of_one(walk, node, terms[0], result)
    else:
        pair = _apart(terms, shapes)
        if any(weights):
            slots = (1, 0) if weights[0] else (0, 1)
            walk.weigh(node, slots, (pair[slots[0]], pair[slots[1]]), result)
        else:
            walk.multiply(node, (0, 1), pair, result)


def _einsum_of_one(walk: Walk, node: Node, term: tuple[int, ...], result: tuple[int, ...]) -> None:
    if len(term) == len(result):
        walk.move(node)
    elif result == tuple(letter for letter in term if letter in result):
        summed = [axis for axis, letter in enumerate(term) if letter not in result]
        walk.reduce(node, summed, keepdims=False, adds=True)
    else:
        walk.pin(node, f"the Einsum '{node.name}' sums and transposes at once")


def _letters(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """One number per axis of each operand and of the result; axes of an ellipsis are counted from its end."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:  # then the letters that occur once, in their order, behind the ellipsis
        right = "..." * ("..." in left) + "".join(sorted(x for x in set(left) if x.isalpha() and left.count(x) == 1))
    hidden = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)]
    numbers: dict[str, int] = {}
    spelled = [_spelled(term, count) for term, count in zip([*terms, right], [*hidden, max(hidden)], strict=True)]
    found = [tuple(numbers.setdefault(letter, len(numbers)) for letter in letters) for letters in spelled]
    return found[:-1], found[-1]


def _spelled(term: str, hidden: int) -> list[str]:
    """The letters of a term, with one of its own for each axis of the ellipsis."""
    before, dots, after = term.partition("...")
    return [*before, *[f".{hidden - i}" for i in range(hidden if dots else 0)], *after]


def _apart(
    terms: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both terms, where an axis of length 1 that is broadcast has a letter of its own."""
    sizes = [dict(zip(term, shape, strict=True)) for term, shape in zip(terms, shapes, strict=True)]
    extra = max(max(term, default=0) for term in terms) + 1
    found = []
    for term, own, other in zip(terms, sizes, reversed(sizes), strict=True):
        broadcast = {letter for letter in term if own[letter] == 1 and other.get(letter, 1) > 1}
        found.append(tuple(extra + letter if letter in broadcast else letter for letter in term))
        extra *= 2
    return found[0], found[1]


def _einsum_macs(node: Node, shapes: Shapes) -> int:
    """The sizes of all letters multiplied; each axis that an ellipsis stands for is a letter of its own."""
    operands = [shapes[name] for name in node.inputs]
    terms, _ = _letters(node.attributes["equation"].replace(" ", ""), operands)
    sizes: dict[int, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        for letter, size in zip(term, shape, strict=True):
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
