"""Functions of known numbers. In a recorded graph some of them are proxies of sizes, which numpy must not look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import fx

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Known


def known_as(plain: Callable[..., Any], recorded: Callable[..., Any] | None = None) -> Known:
    """Elementwise with broadcasting: `plain` of numpy arrays, `recorded` of single numbers where some are proxies.

    `recorded` has to be a Python operator or builtin, which `torch.jit.script` knows too; `plain` if not given.
    """
    single = recorded or plain

    def known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
        if all(array.dtype != object for array in arrays):
            return plain(*arrays)
        return np.frompyfunc(lambda *numbers: record(single, *numbers), len(arrays), 1)(*arrays)

    return known


def record(function: Callable[..., Any], *numbers: Any) -> Any:
    """`function` of numbers; one call of it in the recorded graph where a number is a proxy."""
    proxy = next((number for number in numbers if isinstance(number, fx.Proxy)), None)
    return function(*numbers) if proxy is None else proxy.tracer.create_proxy("call_function", function, numbers, {})
