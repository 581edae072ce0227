"""Max and average pooling, windowed and global.

Shape letters: N batch, C channels, S spatial.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.padding import spatial_pads, symmetric, torch_pads
from worker.compressor.graph.walk import Walk

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


class _Window:
    """Kernel, strides, dilations and padding of one call."""

    def __init__(self, call: Call) -> None:
        self.x = call.tensor(0)
        self.num_axes = call.rank(0) - 2
        if self.num_axes not in _MAX or len(call.node.outputs) > 1:
            raise call.refuse(f"has {self.num_axes} spatial axes, or gives indices too")
        self.kernel = list(call.attribute("kernel_shape"))
        self.strides = list(call.attribute("strides", [1] * self.num_axes))
        self.dilations = list(call.attribute("dilations", [1] * self.num_axes))
        self.pads = spatial_pads(call, self.x, self.kernel, self.strides, self.dilations)
        self.ceil = bool(call.attribute("ceil_mode", 0))

    @property
    def fits_torch(self) -> bool:
        """torch pads both sides alike, by half the kernel at most."""
        return symmetric(self.pads) and all(2 * p <= k for p, k in zip(self.pads, self.kernel, strict=False))


def _max_pool(call: Call) -> Any:
    w = _Window(call)
    x, pads = w.x, w.pads[: w.num_axes]
    if not w.fits_torch:
        x, pads = functional.pad(x, torch_pads(w.pads), value=float("-inf")), [0] * w.num_axes
    return _MAX[w.num_axes](x, w.kernel, w.strides, pads, w.dilations, w.ceil)


def _average_pool(call: Call) -> Any:
    w = _Window(call)
    if any(d != 1 for d in w.dilations):
        raise call.refuse("averages with dilation")
    include = bool(call.attribute("count_include_pad", 0))
    pool = _AVERAGE[w.num_axes]
    if w.fits_torch:
        return pool(w.x, w.kernel, w.strides, w.pads[: w.num_axes], w.ceil, include)
    pads = torch_pads(w.pads)
    mean = pool(functional.pad(w.x, pads), w.kernel, w.strides, [0] * w.num_axes, w.ceil)
    if include:
        return mean
    share = pool(functional.pad(torch.ones_like(w.x), pads), w.kernel, w.strides, [0] * w.num_axes, w.ceil)
    return mean / share


def _spatial_axes(call: Call) -> list[int]:
    return list(range(2, call.rank(0)))


def _global_average(call: Call) -> Any:
    return torch.mean(call.tensor(0), _spatial_axes(call), True)


def _global_max(call: Call) -> Any:
    return torch.amax(call.tensor(0), _spatial_axes(call), True)


def _channels(walk: Walk, node: Node) -> None:
    walk.keep(node, slides=range(2, len(walk.shape(node.inputs[0]))))


register(Operator(op="MaxPool", versions=(1, 8, 10, 11, 12, 22), run=_max_pool, channels=_channels))
register(Operator(op="AveragePool", versions=(7, 10, 11, 19, 22), run=_average_pool, channels=_channels))
register(Operator(op="GlobalAveragePool", versions=(1, 22), run=_global_average, channels=_channels))
register(Operator(op="GlobalMaxPool", versions=(1, 22), run=_global_max, channels=_channels))
