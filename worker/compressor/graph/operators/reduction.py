"""Reductions over axes. The axes are an attribute in older versions and an input in newer ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.proxies import record
from worker.compressor.graph.unsigned import computed, is_whole
from worker.compressor.graph.walk import Walk


def _axes(rank: int, given: Sequence[int] | None, noop: int) -> list[int]:
    if not given:
        return [] if noop else list(range(rank))
    return [axis % rank for axis in given]


def _call_axes(call: Call) -> list[int]:
    given = call.ints(1) if call.has(1) else call.attribute("axes")
    return _axes(call.rank(0), given, call.attribute("noop_with_empty_axes", 0))


def _reduce(
    op: str,
    versions: tuple[int, ...],
    function: Callable[[Call, Any, list[int], bool], Any],
    alone: Callable[[Any], Any] = lambda x: x,
    known: Known | None = None,
) -> None:
    """Register a reduction. `alone` is what is done with each element where `noop_with_empty_axes` leaves no axes."""

    def run(call: Call) -> Any:
        x, axes = call.tensor(0), _call_axes(call)
        return function(call, x, axes, bool(call.attribute("keepdims", 1))) if axes else alone(x)

    register(Operator(op=op, versions=versions, run=run, channels=_channels, data=(0,), known=known))


def _whole(call: Call) -> torch.dtype | None:
    """The type of whole numbers, which torch would widen in a sum; None for others."""
    return call.dtype(0) if is_whole(call.dtype(0)) else None


def _sum(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    whole = _whole(call)
    if whole is None:
        return torch.sum(x, axes, keepdims)
    return computed(call, lambda x: torch.sum(x, axes, keepdims), x).to(whole)


def _mean(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    whole = _whole(call)
    if whole is None:
        return torch.mean(x, axes, keepdims)
    return torch.mean(x, axes, keepdims, dtype=torch.float64).to(whole)


def _extreme(function: Callable[[Any, list[int], bool], Any], least: bool) -> Callable[..., Any]:
    def run(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
        for axis in axes:
            if call.shape_of_constant(0)[axis] == 0:  # nothing to choose from gives the neutral element
                x = x.new_full([1 if i == axis else x.size(i) for i in range(call.rank(0))], _neutral(call, least))
        return computed(call, lambda x: function(x, axes, keepdims), x, ordering=True)

    return run


def _neutral(call: Call, least: bool) -> bool | int | float:
    dtype = call.dtype(0)
    if dtype == torch.bool or dtype.is_floating_point:
        return least if dtype == torch.bool else (math.inf if least else -math.inf)
    limits = torch.iinfo(dtype)
    return limits.max if least else limits.min


def _product(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    whole = _whole(call)
    for axis in sorted(axes, reverse=True):  # torch multiplies over one axis at a time
        x = torch.prod(x, axis, keepdims)
    return x if whole is None else x.to(whole)


def _norm(order: int) -> Callable[..., Any]:
    def run(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
        whole = _whole(call)
        if whole is None:
            return torch.linalg.vector_norm(x, order, axes, keepdims)
        return torch.linalg.vector_norm(x.to(torch.float64), order, axes, keepdims).to(whole)

    return run


def _log_sum(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    whole = _whole(call)
    total = torch.log(torch.sum(x, axes, keepdims))
    return total if whole is None else total.to(whole)


def _log_sum_exp(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    whole = _whole(call)
    return torch.logsumexp(x, axes, keepdims) if whole is None else torch.logsumexp(x, axes, keepdims).to(whole)


def _sum_square(call: Call, x: Any, axes: list[int], keepdims: bool) -> Any:
    return _sum(call, x * x, axes, keepdims)


#: A zero among what they combine changes nothing.
_ADDING = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}


def _channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    given = walk.numbers(node, 1) if len(node.inputs) > 1 and node.inputs[1] else node.attributes.get("axes")
    axes = _axes(rank, given, node.attributes.get("noop_with_empty_axes", 0))
    walk.reduce(node, axes, keepdims=bool(node.attributes.get("keepdims", 1)), adds=node.op in _ADDING)


def _known(function: np.ufunc) -> Known:
    """The reduction of known numbers, axis by axis: functions of proxies know one axis only."""

    def known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
        array = arrays[0]
        given = arrays[1].tolist() if len(arrays) > 1 else node.attributes.get("axes")
        axes = _axes(array.ndim, given, node.attributes.get("noop_with_empty_axes", 0))
        left = [size for axis, size in enumerate(array.shape) if axis not in axes]
        for axis in axes:
            array = function.reduce(array, axis=axis, keepdims=True)
        array = array.astype(arrays[0].dtype, copy=False)
        return array if node.attributes.get("keepdims", 1) else array.reshape(left)

    return known


def _recorded(function: Callable[[Any, Any], Any]) -> np.ufunc:
    return np.frompyfunc(lambda a, b: record(function, a, b), 2, 1)


_FOUR = (1, 11, 13, 18)
_WITH_BYTES = (1, 11, 12, 13, 18, 20)
_reduce("ReduceMean", _FOUR, _mean)
_reduce("ReduceSum", (1, 11, 13), _sum, known=_known(np.add))
_reduce("ReduceMax", _WITH_BYTES, _extreme(torch.amax, least=False), known=_known(_recorded(max)))
_reduce("ReduceMin", _WITH_BYTES, _extreme(torch.amin, least=True), known=_known(_recorded(min)))
_reduce("ReduceProd", _FOUR, _product, known=_known(np.multiply))
_reduce("ReduceL1", _FOUR, _norm(1), torch.abs)
_reduce("ReduceL2", _FOUR, _norm(2), torch.abs)
_reduce("ReduceLogSum", (*_FOUR, 28), _log_sum, torch.log)
_reduce("ReduceLogSumExp", (*_FOUR, 28), _log_sum_exp)
_reduce("ReduceSumSquare", _FOUR, _sum_square, torch.square)
