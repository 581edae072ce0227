"""Unsigned numbers of 16, 32 and 64 bits: torch stores them and does little with them, so int64 computes for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worker.compressor.graph.operator import Call

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_LARGEST = (1 << 63) - 1  # of int64; the next number cannot be written in a scripted graph


def is_whole(dtype: torch.dtype) -> bool:
    """Whether it is a type of whole numbers."""
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def computed(call: Call, function: Callable[..., Any], *values: Any, ordering: bool = False, slot: int = 0) -> Any:
    """`function` of the values, in int64 and back where input `slot` has a type that torch cannot compute with.

    `ordering`: the function only compares, so that the upper half of uint64, negative in int64, is to stay the upper.
    """
    dtype = call.dtype(slot)
    if dtype not in _UNSIGNED:
        return function(*values)
    turned = ordering and dtype == torch.uint64
    result = function(*[_widened(value, turned) for value in values])
    return (result + _LARGEST + 1 if turned else result).to(dtype)


def compared(call: Call, function: Callable[..., Any], *values: Any) -> Any:
    """`function` of the values where its result is true or false."""
    dtype = call.dtype(0)
    if dtype not in _UNSIGNED:
        return function(*values)
    return function(*[_widened(value, dtype == torch.uint64) for value in values])


def _widened(value: Any, turned: bool) -> Any:
    wide = value if isinstance(value, int) else value.to(torch.int64)
    return wide - _LARGEST - 1 if turned else wide
