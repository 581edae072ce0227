"""Normalisation of each sample by itself: over a layer (Ba et al. 2016, arXiv 1607.06450; its root mean square alone, Zhang
and Sennrich 2019, arXiv 1910.07467), over groups of channels (Wu and He 2018, arXiv 1803.08494), or over each channel.

Shape letters: N batch, C channels, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, register
from worker.compressor.graph.walk import SHORT_BLOCK, Walk

_EPSILON = 1e-5


def _axis(call: Call) -> int:
    return int(call.attribute("axis", -1)) % call.rank(0)


def _layer_norm(call: Call) -> Any:
    x, scale, bias, axis = call.tensor(0), call.tensor(1), call.tensor(2), _axis(call)
    epsilon = call.attribute("epsilon", _EPSILON)
    # both are as large as what is normalised nearly always; where they are broadcast, they are applied by themselves
    is_whole = call.rank(1) == call.rank(0) - axis and (bias is None or call.rank(2) == call.rank(1))
    if len(call.node.outputs) == 1 and is_whole and 1 not in call.shape_of_constant(1)[:-1]:
        return functional.layer_norm(x, list(call.shape_of_constant(1)), scale, bias, epsilon)
    axes = list(range(axis, call.rank(0)))
    mean = torch.mean(x, axes, True)
    centred = x - mean
    slope = torch.rsqrt(torch.mean(centred * centred, axes, True) + epsilon)
    y = centred * slope * scale
    y = y if bias is None else y + bias
    return (y, mean, slope)[: len(call.node.outputs)] if len(call.node.outputs) > 1 else y


def _layer_norm_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    axis = node.attributes.get("axis", -1) % rank
    slots = [slot for slot in range(1, len(node.inputs)) if node.inputs[slot]]
    weights = [(slot, rank - len(walk.shape(node.inputs[slot]))) for slot in slots]
    walk.normalise(node, 0, range(axis, rank), weights)


def _rms_norm(call: Call) -> Any:
    x, scale = call.tensor(0), call.tensor(1)
    axes = list(range(_axis(call), call.rank(0)))
    return x * torch.rsqrt(torch.mean(x * x, axes, True) + call.attribute("epsilon", _EPSILON)) * scale


def _instance_norm(call: Call) -> Any:
    x, scale, bias = (call.tensor(slot) for slot in range(3))
    return functional.instance_norm(x, None, None, scale, bias, True, 0.1, call.attribute("epsilon", _EPSILON))


def _instance_norm_channels(walk: Walk, node: Node) -> None:
    walk.normalise(node, 0, range(2, len(walk.shape(node.inputs[0]))), [(1, 1), (2, 1)])


def _group_norm(call: Call) -> Any:
    x, scale, bias = (call.tensor(slot) for slot in range(3))
    return functional.group_norm(x, call.attribute("num_groups"), scale, bias, call.attribute("epsilon", _EPSILON))


def _group_norm_channels(walk: Walk, node: Node) -> None:
    walk.normalise_blocks(node, node.attributes["num_groups"], (1, 2))


def _group_norm_rewrite(view: CutView, node: Node) -> Rewrites:
    """Short groups go as a whole; of long ones each gets narrower."""
    before, groups = view.shape(node.inputs[0])[1], node.attributes["num_groups"]
    now = view.shape_now(node.inputs[0])[1]
    return {"num_groups": [now * groups // before]} if before // groups <= SHORT_BLOCK and now != before else {}


register(
    Operator(op="LayerNormalization", versions=(17,), run=_layer_norm, channels=_layer_norm_channels, weights=(1, 2))
)
register(Operator(op="RMSNormalization", versions=(23,), run=_rms_norm, channels=_layer_norm_channels, weights=(1,)))
register(
    Operator(
        op="InstanceNormalization",
        versions=(6, 22),
        run=_instance_norm,
        channels=_instance_norm_channels,
        weights=(1, 2),
    )
)
register(
    Operator(
        op="GroupNormalization",
        versions=(21,),  # version 18 was withdrawn: its scale was one for each group
        run=_group_norm,
        channels=_group_norm_channels,
        weights=(1, 2),
        rewrite=_group_norm_rewrite,
    )
)
