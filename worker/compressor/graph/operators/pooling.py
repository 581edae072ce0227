"""Max, average and Lp pooling, windowed and global, and the way back from a maximum.

Shape letters: N batch, C channels, S spatial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.padding import spatial_pads, symmetric, torch_pads
from worker.compressor.graph.walk import Walk, sliding_axes

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Callable[..., Any]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


class _Window:
    """Kernel, strides, dilations and padding of one call."""

    def __init__(self, call: Call) -> None:
        self.x = call.tensor(0)
        self.num_axes = call.rank(0) - 2
        if self.num_axes not in _MAX:
            raise call.refuse(f"has {self.num_axes} spatial axes")
        self.kernel = list(call.attribute("kernel_shape"))
        self.strides = list(call.attribute("strides", [1] * self.num_axes))
        self.dilations = list(call.attribute("dilations", [1] * self.num_axes))
        self.pads = spatial_pads(call, self.x, self.kernel, self.strides, self.dilations)
        self.ceil = bool(call.attribute("ceil_mode", 0))

    @property
    def fits_torch(self) -> bool:
        """torch pads both sides alike, by half the kernel at most."""
        return symmetric(self.pads) and all(2 * p <= k for p, k in zip(self.pads, self.kernel, strict=False))

    @property
    def is_dilated(self) -> bool:
        """Whether the window leaves elements out."""
        return any(d != 1 for d in self.dilations)

    def padded(self, x: Any, value: float = 0.0) -> Any:
        """The tensor with its padding around it."""
        return functional.pad(x, torch_pads(self.pads), value=value)

    def sums(self, x: Any) -> Any:
        """Sums over the windows of a padded tensor; of a window that `ceil_mode` lets stick out, over what is there."""
        if self.is_dilated:
            return self._dilated_sums(x)
        none, flat = [0] * self.num_axes, self.num_axes == 1
        if flat:  # torch sums windows over two and three axes only
            sums = functional.avg_pool2d(
                x.unsqueeze(2), [1, *self.kernel], [1, *self.strides], [0, 0], self.ceil, True, 1
            )
            return sums.squeeze(2)
        return _AVERAGE[self.num_axes](x, self.kernel, self.strides, none, self.ceil, True, 1)

    def _dilated_sums(self, x: Any) -> Any:
        """As a convolution with ones, each channel by itself; `ceil_mode` by padding up to the last whole window."""
        if self.ceil:
            ends = [self._missing(x.size(2 + axis), axis) for axis in range(self.num_axes)]
            x = functional.pad(x, torch_pads([*[0] * self.num_axes, *ends]))
        ones = x.new_ones([1, 1, *self.kernel])
        sums = _CONV[self.num_axes](torch.flatten(x, 0, 1).unsqueeze(1), ones, None, self.strides, 0, self.dilations)
        return torch.unflatten(sums.squeeze(1), 0, [-1, x.size(1)])

    def _missing(self, size: Any, axis: int) -> Any:
        """How many elements the last window lacks; a window that begins behind the tensor does not count."""
        extent, stride = (self.kernel[axis] - 1) * self.dilations[axis] + 1, self.strides[axis]
        return (extent - size) % stride


def _max_pool(call: Call) -> Any:
    w = _Window(call)
    if len(call.node.outputs) > 1 and call.node.outputs[1]:
        return _max_pool_with_places(call, w)
    x, pads = w.x, w.pads[: w.num_axes]
    if not w.fits_torch:
        x, pads = w.padded(x, -math.inf), [0] * w.num_axes
    return _MAX[w.num_axes](x, w.kernel, w.strides, pads, w.dilations, w.ceil)


def _max_pool_with_places(call: Call, w: _Window) -> Any:
    """The second output says where in the whole tensor each maximum lies; torch says where in its plane."""
    if not w.fits_torch:
        raise call.refuse("gives indices with a padding that differs at both ends, or exceeds half the window")
    pads = w.pads[: w.num_axes]
    y, place = _MAX[w.num_axes](w.x, w.kernel, w.strides, pads, w.dilations, w.ceil, return_indices=True)
    sizes = [w.x.size(2 + axis) for axis in range(w.num_axes)]
    if call.attribute("storage_order", 0):
        place = _turned(place, sizes)
    planes = torch.arange(w.x.size(0) * w.x.size(1), device=y.device) * math.prod(sizes)
    return y, place + torch.reshape(planes, [w.x.size(0), w.x.size(1), *[1] * w.num_axes])


def _turned(place: Any, sizes: list[Any]) -> Any:
    """Row-major places in a plane as column-major ones."""
    turned, step = 0, math.prod(sizes)
    for size in reversed(sizes):
        step = step // size
        turned = turned + (place % size) * step
        place = torch.div(place, size, rounding_mode="floor")
    return turned


def _max_unpool(call: Call) -> Any:
    x, places = call.tensor(0), call.tensor(1)
    num_axes = call.rank(0) - 2
    kernel = call.attribute("kernel_shape")
    strides = call.attribute("strides", [1] * num_axes)
    pads = call.attribute("pads", [0] * 2 * num_axes)
    sizes = [(x.size(2 + i) - 1) * strides[i] + kernel[i] - pads[i] - pads[num_axes + i] for i in range(num_axes)]
    shape = [x.size(0), x.size(1), *sizes]
    y = torch.scatter(x.new_zeros([math.prod(shape)]), 0, torch.flatten(places), torch.flatten(x))
    y = torch.reshape(y, shape)
    if not call.has(2):
        return y
    ends = [wanted - size for wanted, size in zip(call.ints(2)[2:], sizes, strict=True)]
    return functional.pad(y, torch_pads([*[0] * num_axes, *ends]))


def _average_pool(call: Call) -> Any:
    w = _Window(call)
    include = bool(call.attribute("count_include_pad", 0))
    if w.fits_torch and not w.is_dilated:
        return _AVERAGE[w.num_axes](w.x, w.kernel, w.strides, w.pads[: w.num_axes], w.ceil, include)
    ones = w.x.new_ones([1, 1, *[w.x.size(axis) for axis in _spatial_axes(call)]])
    counted = functional.pad(ones, torch_pads(w.pads), value=1.0) if include else w.padded(ones)
    return w.sums(w.padded(w.x)) / w.sums(counted)


def _lp_pool(call: Call) -> Any:
    w, order = _Window(call), call.attribute("p", 2)
    return torch.pow(w.sums(w.padded(torch.pow(torch.abs(w.x), order))), 1 / order)


def _spatial_axes(call: Call) -> list[int]:
    return list(range(2, call.rank(0)))


def _global_average(call: Call) -> Any:
    return torch.mean(call.tensor(0), _spatial_axes(call), True)


def _global_max(call: Call) -> Any:
    return torch.amax(call.tensor(0), _spatial_axes(call), True)


def _global_lp(call: Call) -> Any:
    return torch.linalg.vector_norm(call.tensor(0), call.attribute("p", 2), _spatial_axes(call), True)


def _channels(walk: Walk, node: Node) -> None:
    walk.keep(node, slides=sliding_axes(walk, node, node.attributes["kernel_shape"]))


def _global_channels(walk: Walk, node: Node) -> None:
    # channels may lie along these axes too: a mean over the last of [batch, sequence, channels] is written this way
    walk.reduce(node, range(2, len(walk.shape(node.inputs[0]))), keepdims=True)


def _max_channels(walk: Walk, node: Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1]:
        walk.pin(node, f"MaxPool '{node.name}' says where in the whole tensor its maxima lie")
    else:
        _channels(walk, node)


def _unpool_channels(walk: Walk, node: Node) -> None:
    walk.pin(node, f"MaxUnpool '{node.name}' puts them where indices say")


register(Operator(op="MaxPool", versions=(1, 8, 10, 11, 12, 22), run=_max_pool, channels=_max_channels))
register(Operator(op="MaxUnpool", versions=(9, 11, 22), run=_max_unpool, channels=_unpool_channels, data=(0, 1)))
register(Operator(op="AveragePool", versions=(7, 10, 11, 19, 22), run=_average_pool, channels=_channels))
register(Operator(op="LpPool", versions=(2, 11, 18, 22), run=_lp_pool, channels=_channels))
register(Operator(op="GlobalAveragePool", versions=(1, 22), run=_global_average, channels=_global_channels))
register(Operator(op="GlobalMaxPool", versions=(1, 22), run=_global_max, channels=_global_channels))
register(Operator(op="GlobalLpPool", versions=(2, 22), run=_global_lp, channels=_global_channels))
