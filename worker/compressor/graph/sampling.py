"""Resampling along one axis, as ONNX Resize says it: which positions each output takes, and by what weights.

An output position is mapped to a coordinate of the input; `nearest` picks one position there, `linear` two, `cubic` four
(Keys 1981), and with antialias the filter is as wide as the shrinking. All is computed in single precision as onnxruntime
does, from lengths that may be proxies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from worker.compressor.graph.operator import Int


@dataclass(frozen=True)
class Sampling:
    """How to resample: ONNX's attributes. `rounding` "by_direction" is that of versions before 11."""

    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool
    outside: float


@dataclass(frozen=True)
class Axis:
    """One axis: its length before and after, the factor (None where it is the ratio of two computed lengths; it may be a
    proxy), and the part that is resized, as shares of the length.
    """

    axis: int
    length: Int
    size: Int
    scale: Any
    roi: tuple[float, float] = (0.0, 1.0)


def resample(x: Any, rank: int, axis: Axis, sampling: Sampling) -> Any:
    """`x` (of that rank) with one axis resampled."""
    places = torch.arange(axis.size, dtype=torch.float32, device=x.device)
    coordinates = _coordinates(sampling, axis, places)
    if sampling.mode == "nearest":
        picked = _rounded(sampling, axis, coordinates)
        result = torch.index_select(x, axis.axis, _inside(picked, axis))
    elif sampling.antialias:
        result = _smoothed(x, rank, axis, sampling, coordinates)
    else:
        result = sum(
            torch.index_select(x, axis.axis, _inside(position, axis)) * _along(weight, rank, axis).type_as(x)
            for position, weight in _taps(sampling, axis, coordinates)
        )
    if sampling.coordinates != "tf_crop_and_resize":
        return result
    beyond = torch.logical_or(coordinates < 0, coordinates > axis.length - 1)
    return torch.masked_fill(result, _along(beyond, rank, axis), sampling.outside)


def indices(sampling: Sampling, axis: Axis, places: Any) -> Any:
    """The positions, before they are limited to the axis, that `nearest` picks for these outputs."""
    return _rounded(sampling, axis, _coordinates(sampling, axis, places))


def _along(vector: Any, rank: int, axis: Axis) -> Any:
    return torch.reshape(vector, [-1] + [1] * (rank - 1 - axis.axis))


def _inside(positions: Any, axis: Axis) -> Any:
    return torch.clamp(positions, 0, axis.length - 1).to(torch.int64)


def _coordinates(sampling: Sampling, axis: Axis, places: Any) -> Any:
    """Where each output position lies in the input."""

    def number(value: Any) -> Any:
        return torch.full([1], value, dtype=torch.float32, device=places.device)

    length, size = axis.length, axis.size
    if sampling.coordinates == "align_corners":
        return places * number(length - 1) / torch.clamp(number(size - 1), min=1)
    if sampling.coordinates == "tf_crop_and_resize":
        begin, end = axis.roi
        steps = torch.clamp(number(size - 1), min=1)
        spread = places * (end - begin) * number(length - 1) / steps
        middle = 0.5 * (begin + end) * number(length - 1)
        return torch.where(number(size) > 1, begin * number(length - 1) + spread, middle)
    factor = _factor(axis, places)
    if sampling.coordinates == "asymmetric":
        return places / factor
    if sampling.coordinates == "tf_half_pixel_for_nn":
        return (places + 0.5) / factor
    half_pixel = (places + 0.5) / factor - 0.5
    if sampling.coordinates == "pytorch_half_pixel":
        return half_pixel * torch.clamp(number(size - 1), max=1)
    if sampling.coordinates == "half_pixel_symmetric":
        return half_pixel + number(length) / 2 * (1 - number(size) / (factor * number(length)))
    return half_pixel


def _rounded(sampling: Sampling, axis: Axis, coordinates: Any) -> Any:
    rounding = sampling.rounding
    if rounding == "by_direction":
        rounding = "ceil" if axis.scale < 1 else "floor"
    return _ROUNDINGS[rounding](coordinates)


_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda coordinates: torch.ceil(coordinates - 0.5),
    "round_prefer_ceil": lambda coordinates: torch.floor(coordinates + 0.5),
}


def _taps(sampling: Sampling, axis: Axis, coordinates: Any) -> list[tuple[Any, Any]]:
    """The positions that each output takes, and their weights, which add up to 1."""
    base, reach = torch.floor(coordinates), _radius(sampling)
    positions = [base + offset for offset in range(1 - reach, reach + 1)]
    weights = [_weight(sampling, position - coordinates) for position in positions]
    if sampling.exclude_outside:
        weights = [weight * _is_inside(position, axis) for weight, position in zip(weights, positions, strict=True)]
        total = sum(weights)
        weights = [weight / total for weight in weights]
    return list(zip(positions, weights, strict=True))


def _smoothed(x: Any, rank: int, axis: Axis, sampling: Sampling, coordinates: Any) -> Any:
    """The axis times a matrix of weights: where it shrinks, the filter reaches over as many positions as it needs."""
    factor = _factor(axis, coordinates)
    narrowing = torch.clamp(factor, max=1.0)
    reach = axis.length // axis.size * _radius(sampling) + 2 * _radius(sampling)
    positions = torch.arange(axis.length + 2 * reach, dtype=torch.float32, device=x.device) - reach
    weights = _weight(sampling, (positions - torch.unsqueeze(coordinates, 1)) * narrowing)
    if sampling.exclude_outside:
        weights = weights * _is_inside(positions, axis)
    weights = weights / torch.sum(weights, [1], True)
    columns = _inside(positions, axis)
    matrix = torch.zeros([axis.size, axis.length], dtype=torch.float32, device=x.device)
    matrix = torch.index_add(matrix, 1, columns, weights).type_as(x)
    return torch.transpose(
        torch.matmul(torch.transpose(x, axis.axis, -1), torch.transpose(matrix, 0, 1)), axis.axis, -1
    )


def _radius(sampling: Sampling) -> int:
    return 1 if sampling.mode == "linear" else 2


def _is_inside(positions: Any, axis: Axis) -> Any:
    return torch.logical_and(positions >= 0, positions <= axis.length - 1)


def _factor(axis: Axis, like: Any) -> Any:
    """The factor as a tensor in single precision."""
    if axis.scale is not None:
        return torch.full([1], axis.scale, dtype=torch.float32, device=like.device)
    size = torch.full([1], axis.size, dtype=torch.float32, device=like.device)
    return size / torch.full([1], axis.length, dtype=torch.float32, device=like.device)


def _weight(sampling: Sampling, distance: Any) -> Any:
    d, a = torch.abs(distance), sampling.cubic
    if sampling.mode == "linear":
        return torch.clamp(1 - d, min=0)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
