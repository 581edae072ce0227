"""Convolutions in one to three dimensions: plain, grouped, depthwise and transposed.

Shape letters: N batch, C input channels, O output channels, K kernel, S spatial.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, Shapes, register
from worker.compressor.graph.padding import spatial_pads, symmetric, torch_pads
from worker.compressor.graph.walk import Walk, sliding_axes

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def _convolve(call: Call) -> Any:
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    num_axes = call.rank(0) - 2
    if num_axes not in _CONV:
        raise call.refuse(f"has {num_axes} spatial axes")
    kernel = list(call.attribute("kernel_shape") or call.shape_of_constant(1)[2:])
    strides = list(call.attribute("strides", [1] * num_axes))
    dilations = list(call.attribute("dilations", [1] * num_axes))
    pads = spatial_pads(call, x, kernel, strides, dilations)
    if not symmetric(pads):
        x, pads = functional.pad(x, torch_pads(pads)), [0] * 2 * num_axes
    return _CONV[num_axes](x, weight, bias, strides, pads[:num_axes], dilations, call.attribute("group", 1))


def _convolve_channels(walk: Walk, node: Node) -> None:
    groups = node.attributes.get("group", 1)
    weight = walk.shape(node.inputs[1])
    slides = sliding_axes(walk, node, weight[2:])
    bias = [(2, 0)] if len(node.inputs) > 2 and node.inputs[2] else []
    if groups > 1 and weight[1] == 1:
        walk.follow(node, (0, 1), [(1, 0), *bias], slides=slides)
        return
    if weight[:2] == (1, 1) and _keeps_lengths(walk, node):
        walk.normalise(node, 0, slides, whole=False, does="slides")
        return
    walk.consume(node, (0, 1), (1, 1), slides=slides, parts=groups)
    walk.produce(node, (1, 0), 1, also=bias, parts=groups)


def _keeps_lengths(walk: Walk, node: Node) -> bool:
    """Whether the output is as long as the input, whatever that is.

    One filter of this kind may slide over channels themselves (ECA-Net, Wang et al. 2020, arXiv 1910.03151).
    """
    is_dense = all(stride == 1 for stride in node.attributes.get("strides", []))
    return is_dense and walk.shape(node.inputs[0])[2:] == walk.shape(node.outputs[0])[2:]


def _convolve_rewrite(view: CutView, node: Node) -> Rewrites:
    """A depthwise convolution has as many groups as channels are left; other groups only get narrower."""
    if node.attributes.get("group", 1) == 1 or view.shape(node.inputs[1])[1] != 1:
        return {}
    num_channels = view.shape_now(node.inputs[0])[1]
    return {"group": [num_channels]} if num_channels != node.attributes["group"] else {}


def _convolve_macs(node: Node, shapes: Shapes) -> int:
    return math.prod(shapes[node.outputs[0]]) * math.prod(shapes[node.inputs[1]][1:])


def _transpose(call: Call) -> Any:
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    num_axes = call.rank(0) - 2
    if num_axes not in _TRANSPOSED:
        raise call.refuse(f"has {num_axes} spatial axes")
    strides = list(call.attribute("strides", [1] * num_axes))
    dilations = list(call.attribute("dilations", [1] * num_axes))
    pads, extra = _transposed_pads(call, strides, dilations)
    groups = call.attribute("group", 1)
    if symmetric(pads):
        return _TRANSPOSED[num_axes](x, weight, bias, strides, pads[:num_axes], extra, groups, dilations)
    # the output is the same for every padding, only more or less is cut off its ends
    y = _TRANSPOSED[num_axes](x, weight, bias, strides, [0] * num_axes, extra, groups, dilations)
    return functional.pad(y, torch_pads([-pad for pad in pads]))


def _transposed_pads(call: Call, strides: list[int], dilations: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off the begins and ends of the output's axes, and what is added at the ends."""
    num_axes, mode = len(strides), call.attribute("auto_pad", "NOTSET")
    extra = list(call.attribute("output_padding", [0] * num_axes))
    wanted = call.attribute("output_shape")
    if not wanted and mode == "VALID":
        return [0] * 2 * num_axes, extra
    if not wanted and mode == "NOTSET":
        return list(call.attribute("pads", [0] * 2 * num_axes)), extra
    kernel = call.attribute("kernel_shape") or call.shape_of_constant(1)[2:]
    begins, ends = [], []
    for axis in range(num_axes):
        total = dilations[axis] * (kernel[axis] - 1) + 1 + extra[axis] - strides[axis]
        if wanted:  # where the output's size is fixed, the input's is
            total += strides[axis] * call.shape_of_constant(0)[2 + axis] - wanted[-num_axes:][axis]
        extra[axis] += max(-total, 0)
        total = max(total, 0)
        less = total // 2
        begins.append(less if mode == "SAME_UPPER" else total - less)
        ends.append(total - less if mode == "SAME_UPPER" else less)
    return begins + ends, extra


def _transpose_channels(walk: Walk, node: Node) -> None:
    groups, weight = node.attributes.get("group", 1), walk.shape(node.inputs[1])
    bias = [(2, 0)] if len(node.inputs) > 2 and node.inputs[2] else []
    slides = range(2, len(weight))
    if groups > 1 and weight[0] == groups:
        walk.follow(node, (0, 1), [(1, 0), *bias], slides=slides)
        return
    walk.consume(node, (0, 1), (1, 0), slides=slides, parts=groups)
    walk.produce(node, (1, 1), 1, also=bias, parts=groups)


def _transpose_rewrite(view: CutView, node: Node) -> Rewrites:
    """As of a convolution; here each channel of a depthwise one has a place along axis 0 of the weight."""
    groups, num_channels = node.attributes.get("group", 1), view.shape_now(node.inputs[0])[1]
    depthwise = groups > 1 and view.shape(node.inputs[1])[0] == groups
    return {"group": [num_channels]} if depthwise and num_channels != groups else {}


def _transpose_macs(node: Node, shapes: Shapes) -> int:
    return math.prod(shapes[node.inputs[0]]) * math.prod(shapes[node.inputs[1]][1:])


register(
    Operator(
        op="Conv",
        versions=(1, 11, 22),
        run=_convolve,
        channels=_convolve_channels,
        macs=_convolve_macs,
        rewrite=_convolve_rewrite,
        weights=(1, 2),
    )
)
register(
    Operator(
        op="ConvTranspose",
        versions=(1, 11, 22),
        run=_transpose,
        channels=_transpose_channels,
        macs=_transpose_macs,
        rewrite=_transpose_rewrite,
        weights=(1, 2),
    )
)
