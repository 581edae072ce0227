"""Sampling at given coordinates: GridSample and AffineGrid."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk

_MODES = {"bilinear": 0, "linear": 0, "nearest": 1, "bicubic": 2, "cubic": 2}
_PADDINGS = {"zeros": 0, "border": 1, "reflection": 2}


def _grid_sample(call: Call) -> Any:
    mode, padding = call.attribute("mode", "linear"), call.attribute("padding_mode", "zeros")
    x, grid, aligned = call.tensor(0), call.tensor(1), bool(call.attribute("align_corners", 0))
    if call.rank(0) == 4:
        return torch.grid_sampler_2d(x, grid, _MODES[mode], _PADDINGS[padding], aligned)
    if call.rank(0) != 5 or _MODES[mode] == 2:
        raise call.refuse(f"samples {call.rank(0) - 2} axes by '{mode}'")
    return torch.grid_sampler_3d(x, grid, _MODES[mode], _PADDINGS[padding], aligned)


def _grid_channels(walk: Walk, node: Node) -> None:
    # coordinates are no channels: what makes them stays
    walk.pin(dataclasses.replace(node, inputs=node.inputs[1:]), f"GridSample '{node.name}' takes them as coordinates")
    walk.keep(node, slides=range(2, len(walk.shape(node.inputs[0]))))


def _affine_grid(call: Call) -> Any:
    return torch.affine_grid_generator(call.tensor(0), call.ints(1), bool(call.attribute("align_corners", 0)))


def _affine_channels(walk: Walk, node: Node) -> None:
    walk.pin(node, f"AffineGrid '{node.name}' takes them as a transformation")


register(Operator(op="GridSample", versions=(16, 20, 22), run=_grid_sample, channels=_grid_channels))
register(Operator(op="AffineGrid", versions=(20,), run=_affine_grid, channels=_affine_channels, data=(0,)))
