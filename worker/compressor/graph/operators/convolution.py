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
from worker.compressor.graph.walk import Walk

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
    slides = range(2, len(weight))
    bias = [(2, 0)] if len(node.inputs) > 2 and node.inputs[2] else []
    if groups > 1 and weight[1] == 1:
        walk.follow(node, (0, 1), [(1, 0), *bias], slides=slides)
        return
    walk.consume(node, (0, 1), (1, 1), slides=slides, parts=groups)
    walk.produce(node, (1, 0), 1, also=bias, parts=groups)


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
    extra = list(call.attribute("output_padding", [0] * num_axes))
    pads = list(call.attribute("pads", [0] * 2 * num_axes))
    if call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or call.attribute("output_shape"):
        raise call.refuse("takes its padding from `auto_pad` or `output_shape`")
    if not symmetric(pads):
        raise call.refuse("pads its two sides differently")
    groups = call.attribute("group", 1)
    return _TRANSPOSED[num_axes](x, weight, bias, strides, pads[:num_axes], extra, groups, dilations)


def _transpose_channels(walk: Walk, node: Node) -> None:
    if node.attributes.get("group", 1) > 1:
        walk.pin(node, f"the grouped ConvTranspose '{node.name}' needs them all")
        return
    bias = [(2, 0)] if len(node.inputs) > 2 and node.inputs[2] else []
    walk.consume(node, (0, 1), (1, 0), slides=range(2, len(walk.shape(node.inputs[1]))))
    walk.produce(node, (1, 1), 1, also=bias)


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
        weights=(1, 2),
    )
)
