"""Functions of the matrices that stand in the last two axes."""

from __future__ import annotations

from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _det(call: Call) -> Any:
    return torch.linalg.det(call.tensor(0))


def _det_channels(walk: Walk, node: Node) -> None:
    walk.pin(node, f"Det '{node.name}' needs whole matrices")


register(Operator(op="Det", versions=(11, 22), run=_det, channels=_det_channels))
