"""Mathematical functions of one tensor, each element by itself; some of them of shapes too."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.sizes import known_as
from worker.compressor.graph.walk import Walk


def _keep(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _unary(op: str, versions: tuple[int, ...], function: Callable[[Any], Any], known: Known | None = None) -> None:
    def run(call: Call) -> Any:
        return function(call.tensor(0))

    register(Operator(op=op, versions=versions, run=run, channels=_keep, known=known))


def _is_infinite(call: Call) -> Any:
    x = call.tensor(0)
    negative, positive = call.attribute("detect_negative", 1), call.attribute("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if negative else torch.isposinf(x)


def _absolute(call: Call) -> Any:
    return call.tensor(0) if _is_unsigned(call) else torch.abs(call.tensor(0))


def _sign(call: Call) -> Any:
    if _is_unsigned(call):
        return (call.tensor(0) != 0).to(call.dtype(0))
    return torch.sign(call.tensor(0))


def _is_unsigned(call: Call) -> bool:
    return call.dtype(0) in (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _reciprocal_known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
    return known_as(operator.truediv)(node, [np.ones((), arrays[0].dtype), arrays[0]])


register(Operator(op="Abs", versions=(6, 13), run=_absolute, channels=_keep, known=known_as(np.abs, abs)))
register(Operator(op="Sign", versions=(9, 13), run=_sign, channels=_keep))
register(Operator(op="IsInf", versions=(10, 20), run=_is_infinite, channels=_keep))
_unary("IsNaN", (9, 13, 20), torch.isnan)
_unary("Neg", (6, 13), torch.neg, known_as(np.negative, operator.neg))
_unary("Floor", (6, 13), torch.floor, known_as(np.floor, math.floor))
_unary("Ceil", (6, 13), torch.ceil, known_as(np.ceil, math.ceil))
_unary("Round", (11, 22), torch.round, known_as(np.round, round))
_unary("Reciprocal", (6, 13), torch.reciprocal, _reciprocal_known)
_unary("Sqrt", (6, 13), torch.sqrt, known_as(np.sqrt, math.sqrt))
_unary("Exp", (6, 13), torch.exp, known_as(np.exp, math.exp))
_unary("Log", (6, 13), torch.log, known_as(np.log, math.log))
_unary("Erf", (9, 13), torch.erf)
_unary("Sin", (7, 22), torch.sin)
_unary("Cos", (7, 22), torch.cos)
_unary("Tan", (7, 22), torch.tan)
_unary("Asin", (7, 22), torch.asin)
_unary("Acos", (7, 22), torch.acos)
_unary("Atan", (7, 22), torch.atan)
_unary("Sinh", (9, 22), torch.sinh)
_unary("Cosh", (9, 22), torch.cosh)
_unary("Asinh", (9, 22), torch.asinh)
_unary("Acosh", (9, 22), torch.acosh)
_unary("Atanh", (9, 22), torch.atanh)
