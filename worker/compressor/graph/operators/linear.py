"""Matrix products: Gemm and MatMul."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, Shapes, register
from worker.compressor.graph.walk import Walk


def _gemm(call: Call) -> Any:
    a, b, c = call.tensor(0), call.tensor(1), call.tensor(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if call.attribute("transA", 0):
        a = torch.t(a)
    plain = alpha == 1.0 and (c is None or (beta == 1.0 and call.rank(2) == 1))
    if plain and call.attribute("transB", 0):
        return functional.linear(a, b, c)
    product = torch.matmul(a, torch.t(b) if call.attribute("transB", 0) else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


def _gemm_channels(walk: Walk, node: Node) -> None:
    if node.attributes.get("transA", 0) or not walk.is_weight(node.inputs[1]):
        walk.pin(node, f"the Gemm '{node.name}' multiplies two activations")
        return
    inner, outer = (1, 0) if node.attributes.get("transB", 0) else (0, 1)
    bias = []
    if len(node.inputs) > 2 and node.inputs[2]:
        shape = walk.shape(node.inputs[2])
        if not walk.is_weight(node.inputs[2]) or (len(shape) == 2 and shape[0] > 1):
            walk.pin(node, f"the Gemm '{node.name}' adds more than a bias")
            return
        bias = [(2, len(shape) - 1)] if shape and shape[-1] > 1 else []
    walk.consume(node, (0, 1), (1, inner))
    walk.produce(node, (1, outer), 1, also=bias)


def _gemm_macs(node: Node, shapes: Shapes) -> int:
    inner = shapes[node.inputs[0]][0 if node.attributes.get("transA", 0) else 1]
    return math.prod(shapes[node.outputs[0]]) * inner


def _matmul(call: Call) -> Any:
    return torch.matmul(call.tensor(0), call.tensor(1))


def _matmul_channels(walk: Walk, node: Node) -> None:
    left, right = node.inputs
    if walk.is_weight(right) and len(walk.shape(right)) == 2:  # two constants: the left one is what the layer reads
        walk.consume(node, (0, -1), (1, 0))
        walk.produce(node, (1, 1), -1)
    elif walk.is_weight(left) and len(walk.shape(left)) == 2 <= len(walk.shape(right)):
        walk.consume(node, (1, -2), (0, 1))
        walk.produce(node, (0, 0), -2)
    else:
        terms, result = _letters(walk.shape(left), walk.shape(right))
        if walk.is_weight(right):
            walk.weigh(node, (0, 1), terms, result)
        elif walk.is_weight(left):
            walk.weigh(node, (1, 0), (terms[1], terms[0]), result)
        else:
            walk.multiply(node, (0, 1), terms, result)


def _letters(
    left: tuple[int, ...], right: tuple[int, ...]
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, ...]]:
    """Letters of a batched product: rows 0, inner 1, columns 2, then the matrices' axes from the last on.

    A vector has the inner axis alone. An axis of length 1 that is broadcast has a letter of its own.
    """
    rank = max(len(left), len(right))
    stack = range(rank, 2, -1)
    ours = [*stack[rank - len(left) :], 0, 1] if len(left) > 1 else [1]
    theirs = [*stack[rank - len(right) :], 1, 2] if len(right) > 1 else [1]
    result = [*stack, *([0] if len(left) > 1 else []), *([2] if len(right) > 1 else [])]
    extra = rank + 1
    for term, shape, other in ((ours, left, right), (theirs, right, left)):
        for axis in range(len(term) - 2):
            facing = axis - len(term) + len(other)
            if shape[axis] == 1 and facing >= 0 and other[facing] > 1:
                term[axis], extra = extra, extra + 1
    return (tuple(ours), tuple(theirs)), tuple(result)


def _matmul_macs(node: Node, shapes: Shapes) -> int:
    return math.prod(shapes[node.outputs[0]]) * shapes[node.inputs[0]][-1]


register(
    Operator(
        op="Gemm",
        versions=(7, 9, 11, 13),
        run=_gemm,
        channels=_gemm_channels,
        macs=_gemm_macs,
        weights=(0, 1, 2),
    )
)
register(
    Operator(
        op="MatMul",
        versions=(1, 9, 13),
        run=_matmul,
        channels=_matmul_channels,
        macs=_matmul_macs,
        weights=(0, 1),
    )
)
