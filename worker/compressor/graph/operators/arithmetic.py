"""Elementwise arithmetic with broadcasting, on data and (Add, Sub, Mul, Div…) on shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.walk import Walk


def _join(walk: Walk, node: Node) -> None:
    walk.join(node)


def _keep(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _add(a: Any, b: Any) -> Any:
    return a + b


def _subtract(a: Any, b: Any) -> Any:
    return a - b


def _multiply(a: Any, b: Any) -> Any:
    return a * b


def _divide(call: Call) -> Any:
    a, b = call.operand(0), call.operand(1)
    if all(_is_whole(call, slot) for slot in (0, 1)):
        return torch.div(a, b, rounding_mode="trunc")
    return a / b


def _is_whole(call: Call, slot: int) -> bool:
    known = call.known(slot)
    if known is not None:
        return known.dtype.kind in "iu"
    value = call.tensor(slot)
    # a proxy has no dtype of its own; integer data is divided nowhere but in shapes and indices
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _divide_known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
    a, b = arrays
    return a // b if "f" not in (a.dtype.kind, b.dtype.kind) else a / b


def _known(function: Callable[[Any, Any], Any]) -> Known:
    return lambda node, arrays: functools.reduce(function, arrays)


def _binary(op: str, function: Callable[[Any, Any], Any], *, weights: tuple[int, ...] = (0, 1)) -> None:
    def run(call: Call) -> Any:
        return function(call.operand(0), call.operand(1))

    register(
        Operator(op=op, versions=(7, 13, 14), run=run, channels=_join, weights=weights, known=_known(function)),
    )


def _of_many(op: str, versions: tuple[int, ...], function: Callable[[Any, Any], Any], mean: bool = False) -> None:
    def run(call: Call) -> Any:
        total = functools.reduce(function, [call.tensor(slot) for slot in range(len(call.node.inputs))])
        return total / len(call.node.inputs) if mean else total

    register(Operator(op=op, versions=versions, run=run, channels=_join))


def _unary(op: str, versions: tuple[int, ...], function: Callable[[Any], Any]) -> None:
    register(Operator(op=op, versions=versions, run=lambda call: function(call.tensor(0)), channels=_keep))


def _power(call: Call) -> Any:
    return torch.pow(call.operand(0), call.operand(1))


_binary("Add", _add)
_binary("Sub", _subtract)
_binary("Mul", _multiply)
register(
    Operator(op="Div", versions=(7, 13, 14), run=_divide, channels=_join, weights=(0, 1), known=_divide_known),
)
register(Operator(op="Pow", versions=(7, 12, 13, 15), run=_power, channels=_join))
_of_many("Sum", (6, 8, 13), _add)
_of_many("Mean", (6, 8, 13), _add, mean=True)
_of_many("Max", (6, 8, 12, 13), torch.maximum)
_of_many("Min", (6, 8, 12, 13), torch.minimum)
_unary("Sqrt", (6, 13), torch.sqrt)
_unary("Exp", (6, 13), torch.exp)
_unary("Log", (6, 13), torch.log)
_unary("Abs", (6, 13), torch.abs)
_unary("Neg", (6, 13), torch.neg)
_unary("Reciprocal", (6, 13), torch.reciprocal)
_unary("Floor", (6, 13), torch.floor)
_unary("Ceil", (6, 13), torch.ceil)
_unary("Sin", (7, 22), torch.sin)
_unary("Cos", (7, 22), torch.cos)
