"""Operators that repeat or regroup whole axes: Tile, DepthToSpace, SpaceToDepth, Col2Im, ReverseSequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _move(walk: Walk, node: Node) -> None:
    walk.move(node)


def _tile(call: Call) -> Any:
    return call.tensor(0).repeat(call.ints(1))


def _tile_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.tile(arrays[0], arrays[1].tolist())


def _tile_channels(walk: Walk, node: Node) -> None:
    if walk.numbers(node, 1) is None:
        walk.pin(node, f"Tile '{node.name}' takes its repeats from data")
    else:
        walk.move(node)


def _depth_to_space(call: Call) -> Any:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return torch.pixel_shuffle(x, block)
    batch, height, width = x.size(0), x.size(2), x.size(3)
    parts = torch.reshape(x, [batch, block, block, -1, height, width])
    return torch.reshape(torch.permute(parts, [0, 3, 4, 1, 5, 2]), [batch, -1, height * block, width * block])


def _space_to_depth(call: Call) -> Any:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return torch.pixel_unshuffle(x, block)
    batch, height, width = x.size(0), x.size(2) // block, x.size(3) // block
    parts = torch.reshape(x, [batch, -1, height, block, width, block])
    return torch.reshape(torch.permute(parts, [0, 3, 5, 1, 2, 4]), [batch, -1, height, width])


def _col2im(call: Call) -> Any:
    image, block = call.ints(1), call.ints(2)
    if len(image) != 2:
        raise call.refuse(f"puts blocks of {len(image)} axes together; only 2 are computed")
    pads = call.attribute("pads", [0] * 4)
    padded = [size + pads[axis] + pads[2 + axis] for axis, size in enumerate(image)]
    dilations, strides = call.attribute("dilations", [1, 1]), call.attribute("strides", [1, 1])
    whole = torch.ops.aten.col2im(call.tensor(0), padded, block, dilations, [0, 0], strides)
    for axis in range(2):
        whole = torch.narrow(whole, 2 + axis, pads[axis], image[axis])
    return whole


def _reverse_sequence(call: Call) -> Any:
    x, rank, dtype = call.tensor(0), call.rank(0), torch.int64
    batch_axis, time_axis = call.attribute("batch_axis", 1), call.attribute("time_axis", 0)
    lengths = torch.reshape(call.tensor(1), [-1 if axis == batch_axis else 1 for axis in range(rank)]).to(dtype)
    times = torch.arange(x.size(time_axis), device=x.device)
    times = torch.reshape(times, [-1 if axis == time_axis else 1 for axis in range(rank)])
    return torch.gather(x, time_axis, torch.where(times < lengths, lengths - 1 - times, times).expand_as(x))


def _reverse_channels(walk: Walk, node: Node) -> None:
    walk.keep(node, slides=[node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)])


register(Operator(op="Tile", versions=(6, 13), run=_tile, channels=_tile_channels, known=_tile_known, data=(0,)))
register(Operator(op="DepthToSpace", versions=(1, 11, 13, 28), run=_depth_to_space, channels=_move))
register(Operator(op="SpaceToDepth", versions=(1, 13, 28), run=_space_to_depth, channels=_move))
register(
    Operator(
        op="Col2Im",
        versions=(18,),
        run=_col2im,
        channels=lambda walk, node: walk.pin(node, f"Col2Im '{node.name}' adds them up in blocks"),
        data=(0,),
    )
)
register(Operator(op="ReverseSequence", versions=(10, 28), run=_reverse_sequence, channels=_reverse_channels))
