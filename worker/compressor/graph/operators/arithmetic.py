"""Elementwise arithmetic of several inputs with broadcasting, on data and on shapes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.sizes import known_as
from worker.compressor.graph.unsigned import computed, is_whole
from worker.compressor.graph.walk import Walk


def _join(walk: Walk, node: Node) -> None:
    walk.join(node)


def _binary(op: str, function: Callable[[Any, Any], Any]) -> None:
    def run(call: Call) -> Any:
        return computed(call, function, *call.operands())

    versions = (7, 13, 14)
    register(Operator(op=op, versions=versions, run=run, channels=_join, weights=(0, 1), known=known_as(function)))


def _divide(call: Call) -> Any:
    if not is_whole(call.dtype(0)):
        a, b = call.operands()
        return a / b
    _check_divisible(call)
    return computed(call, _truncated, call.tensor(0), _divisor(call))


def _truncated(a: Any, b: Any) -> Any:
    return torch.div(a, b, rounding_mode="trunc")


def _divisor(call: Call) -> Any:
    """A zero among whole numbers of the data becomes one: torch raises there, and what ONNX gives is undefined."""
    by = call.operand(1)
    if call.known(1) is not None or not is_whole(call.dtype(1)):
        return by
    return torch.where(by == 0, 1, by).type_as(by)


def _check_divisible(call: Call) -> None:
    if call.dtype(0) == torch.uint64:  # in int64 the upper half would be negative
        raise call.refuse("divides unsigned numbers of 64 bits")


def _divide_known(node: Node, arrays: Any) -> Any:
    whole = all(array.dtype.kind in "iuO" for array in arrays)
    return known_as(_quotient if whole else operator.truediv, operator.floordiv if whole else operator.truediv)(
        node, arrays
    )


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Division towards zero, as ONNX divides whole numbers; numpy's goes down."""
    return np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)


def _modulo(call: Call) -> Any:
    _check_divisible(call)
    function = torch.fmod if call.attribute("fmod", 0) else torch.remainder
    return computed(call, function, call.tensor(0), _divisor(call))


def _modulo_known(node: Node, arrays: Any) -> Any:
    # sizes are not negative, where both kinds are the same
    return known_as(np.fmod if node.attributes.get("fmod", 0) else np.mod, operator.mod)(node, arrays)


def _power(call: Call) -> Any:
    """The result has the type of the base, whatever the exponent has."""
    if call.dtype(0) == call.dtype(1):
        return computed(call, torch.pow, *call.operands())
    power = torch.pow(call.tensor(0), call.operand(1))
    return power.to(call.dtype(0))


def _of_many(op: str, versions: tuple[int, ...], function: Callable[[Any, Any], Any], *, mean: bool = False) -> None:
    def run(call: Call) -> Any:
        values = [call.tensor(0), *[call.operand(slot) for slot in range(1, len(call.node.inputs))]]
        total = functools.reduce(function, values)
        return total / len(values) if mean else total

    register(Operator(op=op, versions=versions, run=run, channels=_join))


def _extreme(op: str, function: Callable[[Any, Any], Any], limit: str, known: Known) -> None:
    """Max or Min of any number of inputs; of two, where one is a number, it is a limit."""

    def run(call: Call) -> Any:
        numbers = [call.operand(slot) for slot in range(len(call.node.inputs))]
        if len(numbers) == 2:
            for value, number in (numbers, reversed(numbers)):
                if isinstance(number, (int, float)) and not isinstance(value, (int, float)):
                    return computed(call, lambda x, n: torch.clamp(x, **{limit: n}), value, number, ordering=True)
        tensors = [call.tensor(slot) for slot in range(len(numbers))]
        return computed(call, lambda *xs: functools.reduce(function, xs), *tensors, ordering=True)

    register(Operator(op=op, versions=(6, 8, 12, 13), run=run, channels=_join, known=known))


def _many_known(plain: Callable[[Any, Any], Any], recorded: Callable[[Any, Any], Any]) -> Known:
    pair = known_as(plain, recorded)
    return lambda node, arrays: functools.reduce(lambda a, b: pair(node, [a, b]), arrays)


_binary("Add", operator.add)
_binary("Sub", operator.sub)
_binary("Mul", operator.mul)
register(Operator(op="Div", versions=(7, 13, 14), run=_divide, channels=_join, weights=(0, 1), known=_divide_known))
register(Operator(op="Mod", versions=(10, 13, 28), run=_modulo, channels=_join, known=_modulo_known))
register(
    Operator(op="Pow", versions=(7, 12, 13, 15), run=_power, channels=_join, known=known_as(np.power, operator.pow))
)
_of_many("Sum", (6, 8, 13), operator.add)
_of_many("Mean", (6, 8, 13), operator.add, mean=True)
_extreme("Max", torch.maximum, "min", _many_known(np.maximum, max))
_extreme("Min", torch.minimum, "max", _many_known(np.minimum, min))
