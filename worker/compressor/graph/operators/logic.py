"""Comparisons, logic and bits, elementwise with broadcasting."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.proxies import record
from worker.compressor.graph.sizes import is_false, known_as
from worker.compressor.graph.unsigned import compared, computed
from worker.compressor.graph.walk import Walk

_LARGEST = (1 << 63) - 1


def _join(walk: Walk, node: Node) -> None:
    walk.join(node)


def _keep(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _compare(op: str, versions: tuple[int, ...], function: Callable[[Any, Any], Any]) -> None:
    def run(call: Call) -> Any:
        return compared(call, function, *call.operands())

    register(Operator(op=op, versions=versions, run=run, channels=_join, known=known_as(function)))


def _equal_known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
    if all(array.dtype != object for array in arrays):
        return arrays[0] == arrays[1]
    return np.frompyfunc(_is_equal, 2, 1)(*arrays)


def _is_equal(a: Any, b: Any) -> Any:
    """Recorded sizes are never negative, so that the -1 of "as it was" is told apart without running."""
    recorded = [number for number in (a, b) if isinstance(number, fx.Proxy)]
    if len(recorded) == 1 and min(number for number in (a, b) if number is not recorded[0]) < 0:
        return False
    return record(operator.eq, a, b)


def _logical(op: str, function: Callable[[Any, Any], Any], single: Callable[[Any, Any], Any]) -> None:
    def run(call: Call) -> Any:
        return function(call.tensor(0), call.tensor(1))

    register(Operator(op=op, versions=(7,), run=run, channels=_join, known=known_as(single)))


def _not(call: Call) -> Any:
    return torch.logical_not(call.tensor(0))


def _bitwise(op: str, function: Callable[[Any, Any], Any]) -> None:
    def run(call: Call) -> Any:
        return function(*call.operands())

    register(Operator(op=op, versions=(18,), run=run, channels=_join, known=known_as(function)))


def _bitwise_not(call: Call) -> Any:
    return computed(call, torch.bitwise_not, call.tensor(0))


def _shift(call: Call) -> Any:
    """Bits that leave are lost; a shift by the width or more leaves nothing but copies of the sign."""
    x, by, dtype = call.tensor(0), call.tensor(1), call.dtype(0)
    if call.attribute("direction") == "LEFT":
        return computed(call, torch.bitwise_left_shift, x, by)
    return computed(call, _shift_right if dtype == torch.uint64 else torch.bitwise_right_shift, x, by)


def _shift_right(x: Any, by: Any) -> Any:
    """Of uint64 held in int64: the first step brings in a zero, not the sign."""
    halved = torch.bitwise_and(torch.bitwise_right_shift(x, 1), _LARGEST)
    shifted = torch.bitwise_right_shift(halved, torch.clamp(by - 1, 0, 63))
    return torch.where(by == 0, x, shifted)


_compare("Greater", (7, 9, 13), operator.gt)
_compare("GreaterOrEqual", (12, 16), operator.ge)
_compare("Less", (7, 9, 13), operator.lt)
_compare("LessOrEqual", (12, 16), operator.le)
register(
    Operator(
        op="Equal",
        versions=(7, 11, 13, 19),
        run=lambda call: operator.eq(*call.operands()),
        channels=_join,
        known=_equal_known,
    )
)
_logical("And", torch.logical_and, operator.and_)
_logical("Or", torch.logical_or, operator.or_)
_logical("Xor", torch.logical_xor, operator.xor)
register(Operator(op="Not", versions=(1,), run=_not, channels=_keep, known=known_as(np.logical_not, is_false)))
_bitwise("BitwiseAnd", operator.and_)
_bitwise("BitwiseOr", operator.or_)
_bitwise("BitwiseXor", operator.xor)
register(Operator(op="BitwiseNot", versions=(18,), run=_bitwise_not, channels=_keep))
register(Operator(op="BitShift", versions=(11, 28), run=_shift, channels=_join))
