"""Reductions over axes. The axes are an attribute in older versions and an input in newer ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _axes(rank: int, given: Sequence[int] | None, noop: int) -> list[int]:
    if not given:
        return [] if noop else list(range(rank))
    return [axis % rank for axis in given]


def _call_axes(call: Call) -> list[int]:
    given = call.ints(1) if call.has(1) else call.attribute("axes")
    return _axes(call.rank(0), given, call.attribute("noop_with_empty_axes", 0))


def _reducing(function: Callable[[Any, list[int], bool], Any]) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        axes = _call_axes(call)
        return function(call.tensor(0), axes, bool(call.attribute("keepdims", 1))) if axes else call.tensor(0)

    return run


#: A zero among what they combine changes nothing.
_ADDING = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}


def _channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    given = walk.numbers(node, 1) if len(node.inputs) > 1 and node.inputs[1] else node.attributes.get("axes")
    axes = _axes(rank, given, node.attributes.get("noop_with_empty_axes", 0))
    walk.reduce(node, axes, keepdims=bool(node.attributes.get("keepdims", 1)), adds=node.op in _ADDING)


def _product_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    numbers = arrays[0].reshape(-1).tolist()
    return np.asarray(math.prod(numbers)).reshape([1] * arrays[0].ndim if node.attributes.get("keepdims", 1) else [])


def _l2(x: Any, axes: list[int], keepdims: bool) -> Any:
    return torch.sqrt(torch.sum(x * x, axes, keepdims))


register(Operator(op="ReduceMean", versions=(1, 11, 13, 18), run=_reducing(torch.mean), channels=_channels, data=(0,)))
register(Operator(op="ReduceSum", versions=(1, 11, 13), run=_reducing(torch.sum), channels=_channels, data=(0,)))
register(
    Operator(op="ReduceMax", versions=(1, 11, 12, 13, 18, 20), run=_reducing(torch.amax), channels=_channels, data=(0,))
)
register(
    Operator(op="ReduceMin", versions=(1, 11, 12, 13, 18, 20), run=_reducing(torch.amin), channels=_channels, data=(0,))
)
register(Operator(op="ReduceL2", versions=(1, 11, 13, 18), run=_reducing(_l2), channels=_channels, data=(0,)))
register(
    Operator(
        op="ReduceProd",
        versions=(1, 11, 13, 18),
        run=lambda call: _refuse(call),
        known=_product_known,
    )
)


def _refuse(call: Call) -> Any:
    raise call.refuse("multiplies data over axes")
