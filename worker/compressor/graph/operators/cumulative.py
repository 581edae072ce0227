"""Sums and products of all elements so far along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Known, Operator, register
from worker.compressor.graph.unsigned import computed, is_whole
from worker.compressor.graph.walk import Walk


def _cumulate(op: str, versions: tuple[int, ...], function: Callable[..., Any], start: int, known: Known) -> None:
    def run(call: Call) -> Any:
        axis = call.ints(1)[0] % call.rank(0)
        return computed(call, lambda x: _along(call, x, axis), call.tensor(0))

    def _along(call: Call, x: Any, axis: int) -> Any:
        x = torch.flip(x, [axis]) if call.attribute("reverse", 0) else x
        # torch widens whole numbers, which keep their type in ONNX
        total = function(x, axis).type_as(x) if is_whole(call.dtype(0)) else function(x, axis)
        if call.attribute("exclusive", 0):
            first = torch.full_like(torch.narrow(x, axis, 0, 1), start)
            total = torch.cat([first, torch.narrow(total, axis, 0, x.size(axis) - 1)], axis)
        return torch.flip(total, [axis]) if call.attribute("reverse", 0) else total

    register(Operator(op=op, versions=versions, run=run, channels=_channels, data=(0,), known=known))


def _channels(walk: Walk, node: Node) -> None:
    numbers = walk.numbers(node, 1)
    if numbers is None:
        walk.pin(node, f"{node.op} '{node.name}' takes its axis from data")
    else:
        walk.close(node, numbers, f"{node.op} '{node.name}' adds them up one after the other")


def _known(function: np.ufunc, start: int) -> Known:
    def known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
        axis, backwards = int(arrays[1].reshape(-1)[0]), node.attributes.get("reverse", 0)
        array = np.flip(arrays[0], axis) if backwards else arrays[0]
        total = function.accumulate(array, axis).astype(array.dtype)
        if node.attributes.get("exclusive", 0):
            first = np.full_like(np.take(array, [0], axis), start)
            total = np.concatenate([first, np.delete(total, -1, axis)], axis)
        return np.flip(total, axis) if backwards else total

    return known


_cumulate("CumSum", (11, 14), torch.cumsum, 0, _known(np.add, 0))
_cumulate("CumProd", (26,), torch.cumprod, 1, _known(np.multiply, 1))
