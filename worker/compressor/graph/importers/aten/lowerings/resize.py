"""Interpolation to another size, and at given coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value

_MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


def _upsampling(mode: str) -> Callable[..., Value]:
    def lower(
        to: Call, x: Tensor | None = None, input: Tensor | None = None, output_size: Value = None,
        align_corners: bool = False, scale_factors: Value = None, scales: Value = None, scales_d: Value = None,
        scales_h: Value = None, scales_w: Value = None,
    ) -> Value:  # fmt: skip
        given = input if x is None else x
        assert given is not None
        factors = scale_factors or [s for s in (scales_d, scales_h, scales_w, scales) if s is not None] or None
        return _resize(to, given, mode, output_size, factors, align_corners)

    return lower


for _mode, _names in {
    "nearest": ["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"],
    "linear": ["upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"],
    "cubic": ["upsample_bicubic2d"],
}.items():
    lowers(*_names)(_upsampling(_mode))


def _resize(to: Call, x: Tensor, mode: str, sizes: Value, factors: Value, align_corners: bool) -> Value:
    """By factors where torch computes with factors; else to sizes.

    torch floors the size that a factor gives and, unless told otherwise, steps through the input by the factor itself:
    so does Resize with `scales`.
    """
    attributes: dict[str, Any] = {"mode": mode}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        way = "align_corners" if align_corners else "pytorch_half_pixel" if mode == "linear" else "half_pixel"
        attributes |= {"coordinate_transformation_mode": way}
    if mode == "cubic":
        attributes["cubic_coeff_a"] = -0.75
    if factors is not None:
        if not all(isinstance(factor, int | float) for factor in factors):
            raise Unsupported("resizes by a factor that is free")
        scales = np.array([1.0, 1.0, *factors], np.float32)
        return to.emit("Resize", x, None, scales, **attributes)
    if sizes is None:
        raise Unsupported("has neither size nor factor")
    spatial: list[int | Free] = list(sizes)
    whole = to.build.ints([to.build.size(x, 0), to.build.size(x, 1), *spatial])
    return to.emit("Resize", x, None, None, whole, **attributes)


@lowers("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(
    to: Call, input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    """`torch.nn.functional.grid_sample`; both modes are numbers there."""
    if input.rank != 4:  # only newer operator sets have it
        raise Unsupported("samples volumes at given coordinates")
    mode = ("bilinear", "nearest", "bicubic")[interpolation_mode]
    padding = ("zeros", "border", "reflection")[padding_mode]
    return to.emit("GridSample", input, grid, mode=mode, padding_mode=padding, align_corners=int(align_corners))
