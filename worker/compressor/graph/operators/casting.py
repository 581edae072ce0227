"""BitCast: the same bits read as another number format of the same width."""

from __future__ import annotations

from typing import Any

import onnx
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _keep(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _bit_cast(call: Call) -> Any:
    name = onnx.helper.tensor_dtype_to_np_dtype(call.attribute("to")).name
    dtype = getattr(torch, name, None)
    if dtype is None or dtype.itemsize != call.dtype(0).itemsize:
        raise call.refuse(f"reads its bits as {name}")
    return torch.view_copy(call.tensor(0), dtype=dtype)


register(Operator(op="BitCast", versions=(26,), run=_bit_cast, channels=_keep))
