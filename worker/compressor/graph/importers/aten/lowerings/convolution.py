"""Convolutions, plain and transposed, and linear layers."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Tensor, Unsupported, Value, is_number


def per_axis(given: Value, count: int) -> list[int]:
    """One whole number per spatial axis, from one or a list of them."""
    numbers: list[Any] = [given] if is_number(given) else list(given)
    if not all(is_number(number) for number in numbers):
        raise Unsupported("takes a stride, padding or kernel size that follows from the size of an input")
    return numbers * count if len(numbers) == 1 else numbers


@lowers("conv1d", "conv2d", "conv3d", "_convolution_mode")
def convolve(
    to: Call, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Value = 1, padding: Value = 0,
    dilation: Value = 1, groups: int = 1,
) -> ir.Value:  # fmt: skip
    """A convolution; `padding` may be "same" or "valid"."""
    spatial = weight.rank - 2
    if isinstance(padding, str):
        steps = per_axis(dilation, spatial)
        total = [step * ((weight.size(axis + 2) or 1) - 1) for axis, step in enumerate(steps)]
        same = padding == "same"
        return _convolve(to, input, weight, bias, stride, [t // 2 if same else 0 for t in total],
                         [t - t // 2 if same else 0 for t in total], dilation, groups)  # fmt: skip
    pads = per_axis(padding, spatial)
    return _convolve(to, input, weight, bias, stride, pads, pads, dilation, groups)


@lowers("_convolution", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolve_either(
    to: Call, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Value = 1, padding: Value = 0,
    dilation: Value = 1, transposed: bool = True, output_padding: Value = 0, groups: int = 1,
) -> ir.Value:  # fmt: skip
    """A convolution of either direction, as tracing records it."""
    spatial = weight.rank - 2
    pads = per_axis(padding, spatial)
    if not transposed:
        return _convolve(to, input, weight, bias, stride, pads, pads, dilation, groups)
    x, alone = _with_batch(to, input, spatial)
    made = to.emit(
        "ConvTranspose", x, weight, bias, group=groups, kernel_shape=_kernel(weight),
        strides=per_axis(stride, spatial), pads=pads + pads, dilations=per_axis(dilation, spatial),
        output_padding=per_axis(output_padding, spatial),
    )  # fmt: skip
    return to.emit("Squeeze", made, [0]) if alone else made


def _convolve(
    to: Call, x: Tensor, weight: Tensor, bias: Any, stride: Value, before: list[int], after: list[int],
    dilation: Value, groups: int,
) -> ir.Value:  # fmt: skip
    spatial = weight.rank - 2
    given, alone = _with_batch(to, x, spatial)
    made = to.emit(
        "Conv", given, weight, bias, group=groups, kernel_shape=_kernel(weight), strides=per_axis(stride, spatial),
        pads=before + after, dilations=per_axis(dilation, spatial),
    )  # fmt: skip
    return to.emit("Squeeze", made, [0]) if alone else made


def _with_batch(to: Call, x: Tensor, spatial: int) -> tuple[ir.Value, bool]:
    alone = x.rank == spatial + 1
    return (to.emit("Unsqueeze", x, [0]) if alone else x.value), alone


def _kernel(weight: Tensor) -> list[int]:
    sizes = [weight.size(axis) for axis in range(2, weight.rank)]
    if any(size is None for size in sizes):
        raise Unsupported("has a kernel whose size follows from the size of an input")
    return [size for size in sizes if size is not None]
