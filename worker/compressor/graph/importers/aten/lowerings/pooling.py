"""Pooling over windows and to a given size."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.lowerings.convolution import per_axis
from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Tensor, Unsupported, Value


@lowers("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    to: Call, x: Tensor, kernel_size: Value, stride: Value = (), padding: Value = 0, dilation: Value = 1,
    ceil_mode: bool = False,
) -> ir.Value:  # fmt: skip
    """The largest of each window."""
    return _max_pool(to, x, kernel_size, stride, padding, dilation, ceil_mode)


@lowers("max_pool2d_with_indices", "max_pool1d_with_indices", "max_pool3d_with_indices")
def max_pool_with_indices(
    to: Call, x: Tensor, kernel_size: Value, stride: Value = (), padding: Value = 0, dilation: Value = 1,
    ceil_mode: bool = False,
) -> ir.Value:  # fmt: skip
    """The largest of each window; where it was is not followed, and nothing may read it."""
    return _max_pool(to, x, kernel_size, stride, padding, dilation, ceil_mode)


def _max_pool(
    to: Call, x: Tensor, kernel: Value, stride: Value, padding: Value, dilation: Value, ceil_mode: bool
) -> ir.Value:
    count = _spatial(to)
    window, pads = per_axis(kernel, count), per_axis(padding, count)
    return _alone(
        to, x, count, "MaxPool", kernel_shape=window, strides=per_axis(stride, count) if stride else window,
        pads=pads + pads, dilations=per_axis(dilation, count), ceil_mode=int(ceil_mode),
    )  # fmt: skip


@lowers("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(
    to: Call, x: Tensor, kernel_size: Value, stride: Value = (), padding: Value = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> ir.Value:  # fmt: skip
    """The mean of each window."""
    if divisor_override is not None:
        raise Unsupported("divides by a number of its own")
    count = _spatial(to)
    window, pads = per_axis(kernel_size, count), per_axis(padding, count)
    return _alone(
        to, x, count, "AveragePool", kernel_shape=window, strides=per_axis(stride, count) if stride else window,
        pads=pads + pads, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad),
    )  # fmt: skip


@lowers("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d")
def adaptive_average_pool(to: Call, x: Tensor, output_size: Value) -> Value:
    """The mean of as many windows as the output has elements."""
    return _adaptive(to, x, output_size, "GlobalAveragePool", "AveragePool")


@lowers("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(to: Call, x: Tensor, output_size: Value) -> Value:
    """The largest of as many windows as the output has elements; where it was is not followed."""
    return _adaptive(to, x, output_size, "GlobalMaxPool", "MaxPool")


def _adaptive(to: Call, x: Tensor, wanted: Value, whole: str, windows: str) -> Value:
    count = _spatial(to)
    sizes = [x.size(axis - count) if size is None else size for axis, size in enumerate(wanted)]
    sizes = sizes * count if len(sizes) == 1 else sizes
    if all(size == 1 for size in sizes):
        return _alone(to, x, count, whole)
    if list(x.shape[x.rank - count :]) == sizes:
        return x
    given = [x.size(axis - count) for axis in range(count)]
    if any(a is None or b is None for a, b in zip(given, sizes, strict=True)):
        raise Unsupported("pools a free size to a fixed one; fix the size in `inputs`")
    pairs = [(a, b) for a, b in zip(given, sizes, strict=True) if a is not None and b is not None]
    if all(a % b == 0 for a, b in pairs):
        window = [a // b for a, b in pairs]
        return _alone(to, x, count, windows, kernel_shape=window, strides=window)
    if windows == "MaxPool" and any(b % a for a, b in pairs):
        raise Unsupported("pools to a size that does not divide the input's")
    made: Value = x
    for axis, (a, b) in enumerate(pairs, start=x.rank - count):
        if b % a == 0 and a != b:  # windows of one element: each is repeated
            made = to.aten("index_select", made, axis, to.build.known(torch.arange(b) // (b // a)))
        elif a != b:
            made = _averaged(to, made, axis, a, b)
    return made


def _averaged(to: Call, x: Value, axis: int, given: int, wanted: int) -> Value:
    """Windows of unequal width along one axis, as a product with the matrix of their weights."""
    weights = torch.zeros(given, wanted, dtype=to.out.dtype)
    for index in range(wanted):
        start, end = index * given // wanted, -((-(index + 1) * given) // wanted)
        weights[start:end, index] = 1 / (end - start)
    moved = to.aten("transpose.int", x, axis, -1)
    return to.aten("transpose.int", to.aten("matmul", moved, to.build.known(weights)), axis, -1)


def _alone(to: Call, x: Tensor, count: int, op: str, **attributes: Any) -> ir.Value:
    """The operator on a batch; one sample without a batch axis gets one for it."""
    if x.rank > count + 1:
        return to.emit(op, x, **attributes)
    return to.emit("Squeeze", to.emit(op, to.emit("Unsqueeze", x, [0]), **attributes), [0])


def _spatial(to: Call) -> int:
    name = to.name
    return int(next(digit for digit in name if digit.isdigit()))
