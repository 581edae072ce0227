"""Python functions and whole or real numbers where some of the values are fx proxies."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

_FOLLOWING = {operator.add, operator.sub, operator.mul, operator.neg, operator.pow, max, min}


def record(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The function of the arguments: computed, or, where one of them is a proxy, recorded as one call.

    The function must be scriptable, and defined at the top of a module, because a recorded graph calls it by name.
    """
    tracer = _tracer([*arguments, *named.values()])
    if tracer is None:
        return function(*arguments, **named)
    return tracer.create_proxy("call_function", function, arguments, named)


def _tracer(value: Any) -> Any:
    if isinstance(value, fx.Proxy):
        return value.tracer
    if isinstance(value, list | tuple):
        return next((found for found in map(_tracer, value) if found is not None), None)
    return None


def as_real(number: Any) -> Any:
    """The number as a float, recorded where it is a proxy."""
    return record(float, number)


def as_whole(number: Any) -> Any:
    """The number cut to an int, recorded where it is a proxy."""
    return record(int, number)


def is_real(number: Any) -> bool:
    """Whether the number is a float, or the proxy of one."""
    return _is_real(number.node) if isinstance(number, fx.Proxy) else isinstance(number, float)


def _is_real(number: Any) -> bool:
    if not isinstance(number, fx.Node):
        return isinstance(number, float)
    if number.target in _FOLLOWING:
        return any(_is_real(argument) for argument in number.args)
    return number.target in (float, operator.truediv)
