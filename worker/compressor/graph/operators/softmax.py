"""Softmax and LogSoftmax. Before opset 13 they flatten to two axes at `axis` and normalise over all that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk

_FLATTENING = (1, 11)
_ALONG_ONE_AXIS = (13,)


def _flattening(function: Callable[[Any, int], Any]) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        x, rank = call.tensor(0), call.rank(0)
        axis = call.attribute("axis", 1) % rank if rank else 0
        if axis == rank - 1:
            return function(x, axis)
        flat = torch.flatten(x, axis)
        return torch.reshape(function(flat, axis), [x.size(i) for i in range(rank)])

    return run


def _along(function: Callable[[Any, int], Any]) -> Callable[[Call], Any]:
    return lambda call: function(call.tensor(0), call.attribute("axis", -1))


def _flattening_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    walk.normalise(node, 0, range(node.attributes.get("axis", 1) % rank, rank), whole=False)


def _along_channels(walk: Walk, node: Node) -> None:
    walk.normalise(node, 0, [node.attributes.get("axis", -1)], whole=False)


for _op, _function in (("Softmax", torch.softmax), ("LogSoftmax", torch.log_softmax)):
    register(Operator(op=_op, versions=_FLATTENING, run=_flattening(_function), channels=_flattening_channels))
    register(Operator(op=_op, versions=_ALONG_ONE_AXIS, run=_along(_function), channels=_along_channels))
