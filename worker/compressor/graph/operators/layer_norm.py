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
from worker.compressor.graph.walk import Walk

_EPSILON = 1e-5
_STASH = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


def _layer_norm(call: Call) -> Any:
    x, scale, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    rank, epsilon = call.rank(0), call.attribute("epsilon", _EPSILON)
    axis = call.attribute("axis", -1) % rank
    sizes = _normalised_sizes(call, axis)
    if sizes is not None:
        y = functional.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        y = functional.layer_norm(x, [x.size(i) for i in range(axis, rank)], None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if len(call.node.outputs) == 1:
        return y
    stash = _STASH[call.attribute("stash_type", 1)]
    axes = list(range(axis, rank))
    mean = torch.mean(x, axes, True, dtype=stash)
    variance = torch.mean(torch.square(x.to(stash) - mean), axes, True)
    return y, mean, torch.rsqrt(variance + epsilon)


def _layer_norm_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    axis = node.attributes.get("axis", -1) % rank
    slots = [slot for slot in range(1, len(node.inputs)) if node.inputs[slot]]
    weights = [(slot, rank - len(walk.shape(node.inputs[slot]))) for slot in slots]
    walk.normalise(node, 0, range(axis, rank), weights)


def _rms_norm(call: Call) -> Any:
    x, scale, rank = call.tensor(0), call.tensor(1), call.rank(0)
    epsilon = call.attribute("epsilon", _EPSILON)
    axis = call.attribute("axis", -1) % rank
    sizes = _normalised_sizes(call, axis)
    if sizes is not None:
        return functional.rms_norm(x, sizes, scale, epsilon)
    return functional.rms_norm(x, [x.size(i) for i in range(axis, rank)], None, epsilon) * scale


def _normalised_sizes(call: Call, axis: int) -> list[int] | None:
    """The sizes that are normalised over, where scale and bias are constants of just that shape."""
    constants = [call.known(slot) for slot in (1, 2) if call.has(slot)]
    shapes = [list(constant.shape) for constant in constants if constant is not None]
    if len(shapes) < len(constants) or len(shapes[0]) != call.rank(0) - axis or shapes[0] != shapes[-1]:
        return None
    facing = list(call.shape_of_constant(0)[axis:])  # a scale that is broadcast is shorter
    return shapes[0] if shapes[0] == facing else None


def _instance_norm(call: Call) -> Any:
    x, scale, bias = (call.tensor(slot) for slot in range(3))
    # torch's own function, which takes a single element per channel too
    return torch.instance_norm(x, scale, bias, None, None, True, 0.1, call.attribute("epsilon", _EPSILON), True)


def _instance_norm_channels(walk: Walk, node: Node) -> None:
    walk.normalise(node, 0, range(2, len(walk.shape(node.inputs[0]))), [(1, 1), (2, 1)])


def _group_norm(call: Call) -> Any:
    x, scale, bias = (call.tensor(slot) for slot in range(3))
    return functional.group_norm(x, call.attribute("num_groups"), scale, bias, call.attribute("epsilon", _EPSILON))


def _group_norm_channels(walk: Walk, node: Node) -> None:
    walk.normalise_blocks(node, node.attributes["num_groups"], (1, 2))


def _group_norm_rewrite(view: CutView, node: Node) -> Rewrites:
    """Groups go as a whole, or each gets narrower."""
    before, groups = view.shape(node.inputs[0])[1], node.attributes["num_groups"]
    now = view.shape_now(node.inputs[0])[1]
    return (
        {"num_groups": [now * groups // before]}
        if now != before and view.goes_by_blocks(node.inputs[0], groups)
        else {}
    )


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
