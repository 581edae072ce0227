"""Functions of known numbers. In a recorded graph some of them are proxies of sizes, which numpy must not look into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.compressor.graph.network import Node
from worker.compressor.graph.proxies import record

if TYPE_CHECKING:
    from worker.compressor.graph.operator import Known


def known_as(plain: Callable[..., Any], recorded: Callable[..., Any] | None = None) -> Known:
    """Elementwise with broadcasting: `plain` of numpy arrays, `recorded` of single numbers where some are proxies.

    `recorded` has to be a Python operator or builtin, or a function that `torch.jit.script` reads; `plain` if not given.
    """
    single = recorded or plain

    def known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
        if all(array.dtype != object for array in arrays):
            return plain(*arrays)
        found = np.empty(np.broadcast_shapes(*(array.shape for array in arrays)), object)  # also of a single number
        return np.frompyfunc(lambda *numbers: record(single, *numbers), len(arrays), 1)(*arrays, out=found)

    return known


def choose(condition: bool, a: int, b: int) -> int:
    """One of two sizes."""
    return a if condition else b


def is_false(condition: bool) -> bool:
    """`not`, which a recorded graph has no operator for."""
    return not condition
