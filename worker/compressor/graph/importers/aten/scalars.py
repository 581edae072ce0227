"""Operators of TorchScript that work on numbers, strings and lists, in Python; free numbers also become nodes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from worker.compressor.graph.importers.aten.builder import Builder
from worker.compressor.graph.importers.aten.values import Free, Unsupported, Value, has_free


def _floor(a: Any, b: Any) -> Any:
    return a // b


#: Operator → ONNX operator (None: its result must not be free), and the Python function.
_ARITHMETIC: dict[str, tuple[str | None, Callable[..., Any]]] = {
    "add": ("Add", operator.add), "sub": ("Sub", operator.sub), "mul": ("Mul", operator.mul),
    "floordiv": ("Div", _floor), "floor_divide": ("Div", _floor), "div": ("Div", operator.truediv),
    "truediv": ("Div", operator.truediv), "neg": ("Neg", operator.neg), "remainder": ("Mod", operator.mod),
    "mod": ("Mod", operator.mod), "abs": ("Abs", abs), "min": ("Min", min), "max": ("Max", max),
    "pow": (None, pow), "sqrt": (None, math.sqrt), "log": (None, math.log), "exp": (None, math.exp),
    "floor": (None, math.floor), "ceil": (None, math.ceil), "round": (None, round), "trunc": (None, math.trunc),
    "eq": (None, operator.eq), "ne": (None, operator.ne), "lt": (None, operator.lt), "le": (None, operator.le),
    "gt": (None, operator.gt), "ge": (None, operator.ge), "__not__": (None, operator.not_),
    "__and__": (None, operator.and_), "__or__": (None, operator.or_), "__xor__": (None, operator.xor),
    "bitwise_and": (None, operator.and_), "bitwise_or": (None, operator.or_), "__lshift__": (None, operator.lshift),
    "__rshift__": (None, operator.rshift), "sin": (None, math.sin), "cos": (None, math.cos),
    "log2": (None, math.log2), "rsub": ("Sub", lambda a, b: b - a),
}  # fmt: skip


def is_arithmetic(name: str, args: list[Value]) -> bool:
    """Whether this is arithmetic with numbers (or text) alone."""
    return name in _ARITHMETIC and all(isinstance(arg, Free | int | float | str | type(None)) for arg in args)


def compute(build: Builder, name: str, args: list[Value]) -> Value:
    """The result of arithmetic or a comparison.

    Raises:
        Unsupported: for an operator that is not known, or a result that would have to differ with free sizes.
    """
    if name not in _ARITHMETIC:
        raise Unsupported("is not supported")
    op, function = _ARITHMETIC[name]
    if name in ("add", "sub", "rsub") and len(args) == 3:  # the form with `alpha`
        args = [args[0], compute(build, "mul", [args[1], args[2]]) if args[2] != 1 else args[1]]
    if name == "div" and len(args) == 3:
        op, function, args = "Div", {"floor": _floor, "trunc": _towards_zero}[args[2]], args[:2]
    if not has_free(args):
        return function(*args)
    if name == "rsub":
        op, function, args = "Sub", operator.sub, args[::-1]
    results = [function(*(a.trials[t] if isinstance(a, Free) else a for a in args)) for t in range(build.num_trials)]
    if op is None and any(result != results[0] for result in results):
        raise Unsupported("has a result that differs with a free size; fix the size in `inputs`")
    return results[0] if op is None else build.compute(op, function, *args)


def _towards_zero(a: Any, b: Any) -> int:
    return int(a / b)
