"""Triangles and diagonals: Trilu and EyeLike, of which masks are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _trilu(call: Call) -> Any:
    diagonal = call.ints(1)[0] if call.has(1) else 0
    function = torch.triu if call.attribute("upper", 1) else torch.tril
    return function(call.tensor(0), diagonal)


def _trilu_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    diagonal = arrays[1].item() if len(arrays) > 1 else 0
    if arrays[0].dtype == object or not isinstance(diagonal, int):
        return None
    return (np.triu if node.attributes.get("upper", 1) else np.tril)(arrays[0], diagonal)


def _trilu_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    walk.keep(node, slides=[rank - 2, rank - 1])


def _eye_like(call: Call) -> Any:
    x, given = call.tensor(0), call.attribute("dtype")
    dtype = call.dtype(0) if given is None else _torch_dtype(given)
    rows, columns = torch.arange(x.size(0), device=x.device), torch.arange(x.size(1), device=x.device)
    return (torch.unsqueeze(rows + call.attribute("k", 0), 1) == columns).to(dtype)


def _torch_dtype(number: int) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(number))).dtype


register(Operator(op="Trilu", versions=(14,), run=_trilu, channels=_trilu_channels, known=_trilu_known, data=(0,)))
register(
    Operator(
        op="EyeLike",
        versions=(9, 22),
        run=_eye_like,
        channels=lambda walk, node: None,
    )
)
