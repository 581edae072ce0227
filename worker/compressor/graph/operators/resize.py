"""Resize and Upsample: torch's own interpolation where it means the same, else a weighted sum of picked positions.

torch interpolates as ONNX does for half-pixel and aligned corners; `nearest` is `asymmetric` with floor (and equal to others
at whole factors). What has no torch function is done one axis at a time; see `sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Int, Operator, Rewrites, register
from worker.compressor.graph.proxies import record
from worker.compressor.graph.sampling import Axis, Sampling, indices, resample
from worker.compressor.graph.walk import Walk

_aten = torch.ops.aten
_NEAREST = {1: _aten.upsample_nearest1d, 2: _aten.upsample_nearest2d, 3: _aten.upsample_nearest3d}
_EXACT = {1: _aten._upsample_nearest_exact1d, 2: _aten._upsample_nearest_exact2d, 3: _aten._upsample_nearest_exact3d}
_LINEAR = {1: _aten.upsample_linear1d, 2: _aten.upsample_bilinear2d, 3: _aten.upsample_trilinear3d}
_CUBIC = {2: _aten.upsample_bicubic2d}
_TRIED = 4096  # output positions at which torch's rounding of a factor is compared with that of ONNX


@dataclass(frozen=True)
class _Inputs:
    """Which slots hold what; -1 where the version has no such input."""

    roi: int = -1
    scales: int = -1
    sizes: int = -1


_SLOTS = {("Upsample", 9): _Inputs(scales=1), ("Upsample", 7): _Inputs(), ("Resize", 10): _Inputs(scales=1)}
_NOW = _Inputs(roi=1, scales=2, sizes=3)


def _resize(call: Call) -> Any:
    x, sampling = call.tensor(0), _sampling(call)
    axes = _axes(call, x, sampling)
    if not axes:
        return x
    if sampling.mode != "nearest" and not call.dtype(0).is_floating_point:
        raise call.refuse("interpolates between whole numbers")
    native = _native(call, sampling, axes)
    if native is not None:
        return _last(x, call.rank(0), [axis.axis for axis in axes], native)
    for axis in axes:
        x = resample(x, call.rank(0), axis, sampling)
    return x


def _sampling(call: Call) -> Sampling:
    """The node's attributes, with the meaning that they have in its version."""
    mode = call.attribute("mode", "nearest")
    old = call.node.op == "Upsample" or call.node.since_version == 10
    if mode not in ("nearest", "linear", "cubic"):
        raise call.refuse(f"resizes by '{mode}'")
    return Sampling(
        mode=mode,
        coordinates="asymmetric" if old else call.attribute("coordinate_transformation_mode", "half_pixel"),
        rounding="by_direction" if old else call.attribute("nearest_mode", "round_prefer_floor"),
        cubic=float(np.float32(call.attribute("cubic_coeff_a", -0.75))),
        exclude_outside=bool(call.attribute("exclude_outside", 0)),
        antialias=bool(call.attribute("antialias", 0)),
        outside=call.attribute("extrapolation_value", 0.0),
    )


def _axes(call: Call, x: Any, sampling: Sampling) -> list[Axis]:
    """The axes that change, with their lengths and factors.

    A length that is computed (a proxy) is taken to change if it did where shapes were observed.
    """
    rank = call.rank(0)
    named = [axis % rank for axis in call.attribute("axes", range(rank))]
    slots = _slots(call.node)
    scales = _scales(call, slots)
    sizes = None if scales is not None else call.ints(slots.sizes)
    rois = _roi(call, slots, sampling, len(named))
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        lengths = [x.size(axis) for axis in named]
        factor = record(fitting_factor, lengths, sizes, policy == "not_larger")
        return [Axis(axis, n, record(rounded, n, factor), factor) for axis, n in zip(named, lengths, strict=True)]
    found = []
    for index, axis in enumerate(named):
        length, roi = x.size(axis), rois[index]
        if scales is not None:
            if scales[index] != 1 or roi != (0.0, 1.0):
                found.append(Axis(axis, length, _scaled(length, scales[index]), scales[index], roi))
        elif sizes is not None and (roi != (0.0, 1.0) or _changes(call, axis, length, sizes[index])):
            scale = float(np.float32(sizes[index] / length)) if _are_numbers(length, sizes[index]) else None
            found.append(Axis(axis, length, sizes[index], scale, roi))
    return found


def fitting_factor(lengths: list[int], sizes: list[int], smallest: bool) -> float:
    """One factor for all axes: the smallest (or else the largest) of sizes over lengths, in single precision."""
    factors = torch.tensor(sizes, dtype=torch.float32) / torch.tensor(lengths, dtype=torch.float32)
    return float(factors.min() if smallest else factors.max())


def rounded(length: int, factor: float) -> int:
    """The nearest whole number to length times factor, halves upwards."""
    return math.floor(length * factor + 0.5)


def _slots(node: Node) -> _Inputs:
    return _SLOTS.get(node.key, _NOW)


def _scales(call: Call, slots: _Inputs) -> list[float] | None:
    """The factors; None where sizes are given instead."""
    if slots.scales < 0:
        return [float(np.float32(scale)) for scale in call.attribute("scales")]
    if slots.sizes >= 0 and call.has(slots.sizes):
        return None
    known = call.known(slots.scales)
    if known is None or known.dtype == object:
        raise call.refuse("takes its factors from data or from the input's size; only constants can be followed")
    return [float(np.float32(scale)) for scale in known.reshape(-1).tolist()]


def _roi(call: Call, slots: _Inputs, sampling: Sampling, count: int) -> list[tuple[float, float]]:
    """Begin and end of the part that is resized, per axis, as shares of its length."""
    if sampling.coordinates != "tf_crop_and_resize":
        return [(0.0, 1.0)] * count
    known = call.known(slots.roi)
    if known is None or known.dtype == object:
        raise call.refuse("takes the part that it resizes from data")
    numbers = [float(np.float32(number)) for number in known.reshape(-1).tolist()]
    return list(zip(numbers[:count], numbers[count:], strict=True))


def _scaled(length: Int, scale: float) -> Int:
    """floor(length * scale) in whole numbers, as it comes out in single precision: 10 * 0.7 is 7."""
    exact = Fraction(scale)
    simple = exact.limit_denominator(1024)
    share = simple if abs(simple - exact) * (1 << 24) <= exact else exact
    return length * share.numerator // share.denominator


def _changes(call: Call, axis: int, length: Int, size: Int) -> bool:
    if _are_numbers(length, size):
        return bool(length != size)
    return call.observed(call.node.inputs[0])[axis] != call.observed(call.node.outputs[0])[axis]


def _are_numbers(*numbers: Int) -> bool:
    return all(isinstance(number, int) for number in numbers)


def _native(call: Call, sampling: Sampling, axes: list[Axis]) -> Callable[[Any], Any] | None:
    """The torch function that computes the same, on a tensor with these axes at its end; None where there is none."""
    given = [axis.scale for axis in axes]
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    scales = given if not _slots(call.node).sizes >= 0 or not call.has(_slots(call.node).sizes) else [None] * len(axes)
    sizes, count = [axis.size for axis in axes], len(axes)
    if sampling.mode == "nearest":
        whole = not call.dtype(0).is_floating_point
        kind = None if whole or count > 3 else _nearest_kind(sampling, axes)
        return None if kind is None else lambda x: kind[count](x, sizes, *scales)
    aligned = sampling.coordinates == "align_corners"
    if not aligned and not all(_is_half_pixel(sampling, axis) for axis in axes):
        return None
    if sampling.antialias and any(scale is None or scale < 1 for scale in given):
        return None  # torch leaves out what lies beyond the border
    if sampling.mode == "linear" and count in _LINEAR:
        return lambda x: _LINEAR[count](x, sizes, aligned, *scales)
    if sampling.mode == "cubic" and count in _CUBIC and sampling.cubic == -0.75 and not sampling.exclude_outside:
        return lambda x: _CUBIC[count](x, sizes, aligned, *scales)
    return None


def _nearest_kind(sampling: Sampling, axes: list[Axis]) -> dict[int, Any] | None:
    """torch's `nearest` or `nearest-exact`, where it picks the same positions at these factors."""
    for kind, shift in ((_NEAREST, 0.0), (_EXACT, 0.5)):
        if all(_picks_the_same(sampling, axis, shift) for axis in axes):
            return kind
    return None


def _picks_the_same(sampling: Sampling, axis: Axis, shift: float) -> bool:
    if axis.scale is None:  # any factor may come
        by_name = {("asymmetric", "floor"): 0.0, ("half_pixel", "round_prefer_ceil"): 0.5}
        return by_name.get((sampling.coordinates, sampling.rounding)) == shift
    if sampling.coordinates not in ("asymmetric", "half_pixel", "tf_half_pixel_for_nn"):
        return False
    places = torch.arange(_TRIED, dtype=torch.float32)
    theirs = torch.floor((places + shift) * torch.tensor(1 / axis.scale, dtype=torch.float32))
    return bool((indices(sampling, axis, places).clamp(min=0) == theirs).all())


def _is_half_pixel(sampling: Sampling, axis: Axis) -> bool:
    """Whether coordinates are (i + 0.5) / scale - 0.5."""
    if sampling.coordinates == "pytorch_half_pixel":
        # they differ where one position is left of several; a computed size (of another feature map) is taken to be more
        growing = axis.scale is not None and axis.scale >= 1
        return growing or (axis.size > 1 if _are_numbers(axis.size) else axis.scale is None)
    if sampling.coordinates == "half_pixel_symmetric":
        return axis.scale is None or axis.scale.is_integer()
    return sampling.coordinates == "half_pixel"


def _last(x: Any, rank: int, axes: Sequence[int], function: Callable[[Any], Any]) -> Any:
    """The function on the tensor seen with these axes at its end and two before them, as torch wants it."""
    rest = [axis for axis in range(rank) if axis not in axes]
    order = [*rest, *axes]
    moved = order != sorted(order)
    if moved:
        x = torch.permute(x, order)
    lacking = 2 - len(rest)
    if lacking < 0:
        lengths = [x.size(axis) for axis in range(len(rest))]
        y = function(torch.flatten(x, 0, len(rest) - 2))
        y = torch.reshape(y, [*lengths, *(y.size(2 + axis) for axis in range(len(axes)))])
    else:
        for _ in range(lacking):
            x = torch.unsqueeze(x, 0)
        y = function(x)
        for _ in range(lacking):
            y = torch.squeeze(y, 0)
    return torch.permute(y, [order.index(axis) for axis in range(rank)]) if moved else y


def _channels(walk: Walk, node: Node) -> None:
    before, after = walk.shape(node.inputs[0]), walk.shape(node.outputs[0])
    walk.keep(node, slides=[axis for axis, size in enumerate(before) if size != after[axis]])


def _rewrite(view: CutView, node: Node) -> Rewrites:
    slots, wanted = _slots(node), view.shape_wanted(node.outputs[0])
    sizes = view.numbers_now(node, slots.sizes) if slots.sizes >= 0 else None
    if not sizes:
        return {}
    axes = [axis % len(wanted) for axis in node.attributes.get("axes", range(len(wanted)))]
    before = view.shape(node.outputs[0])
    new = [wanted[a] if wanted[a] != before[a] and n != wanted[a] else None for a, n in zip(axes, sizes, strict=True)]
    return {} if all(number is None for number in new) else {slots.sizes: new}


register(
    Operator(op="Resize", versions=(10, 11, 13, 18, 19), run=_resize, channels=_channels, rewrite=_rewrite, data=(0,))
)
register(Operator(op="Upsample", versions=(7, 9), run=_resize, channels=_channels, data=(0,)))
