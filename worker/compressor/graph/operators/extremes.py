"""Where the largest or smallest elements lie: ArgMax, ArgMin, Hardmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.unsigned import compared
from worker.compressor.graph.walk import Walk


def _choosing(function: Callable[[Any, int, bool], Any]) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        axis, keepdims = call.attribute("axis", 0) % call.rank(0), bool(call.attribute("keepdims", 1))
        if not call.attribute("select_last_index", 0):
            return compared(call, lambda x: function(x, axis, keepdims), call.tensor(0))
        found = compared(call, lambda x: function(torch.flip(x, [axis]), axis, keepdims), call.tensor(0))
        return call.tensor(0).size(axis) - 1 - found

    return run


def _choosing_channels(walk: Walk, node: Node) -> None:
    axis, rank = node.attributes.get("axis", 0), len(walk.shape(node.inputs[0]))
    walk.close(node, [axis], f"{node.op} '{node.name}' says which of them it chose")
    walk.reduce(node, [axis % rank], keepdims=bool(node.attributes.get("keepdims", 1)))


def _hardmax(call: Call) -> Any:
    x, axis = call.tensor(0), call.attribute("axis", -1)
    return torch.scatter(torch.zeros_like(x), axis, torch.argmax(x, axis, True), 1.0)


def _hardmax_flattening(call: Call) -> Any:
    """Before opset 13 all axes from `axis` on are one."""
    x, rank = call.tensor(0), call.rank(0)
    axis = call.attribute("axis", 1) % rank
    flat = torch.flatten(x, axis)
    chosen = torch.scatter(torch.zeros_like(flat), axis, torch.argmax(flat, axis, True), 1.0)
    return torch.reshape(chosen, [x.size(i) for i in range(rank)])


def _hardmax_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    axes = [node.attributes.get("axis", -1)]
    if node.since_version < 13:
        axes = list(range(node.attributes.get("axis", 1) % rank, rank))
    walk.close(node, axes, f"Hardmax '{node.name}' chooses among them")


register(Operator(op="ArgMax", versions=(1, 11, 12, 13), run=_choosing(torch.argmax), channels=_choosing_channels))
register(Operator(op="ArgMin", versions=(1, 11, 12, 13), run=_choosing(torch.argmin), channels=_choosing_channels))
register(Operator(op="Hardmax", versions=(1, 11), run=_hardmax_flattening, channels=_hardmax_channels))
register(Operator(op="Hardmax", versions=(13,), run=_hardmax, channels=_hardmax_channels))
