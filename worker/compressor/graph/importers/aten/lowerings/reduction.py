"""Sums, means, extremes and the like over axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Number, Tensor, Unsupported, Value


def axes_of(x: Tensor, dim: Value) -> list[int]:
    """The axes named, all where none is; from 0 up."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(x.rank))
    return [axis % max(x.rank, 1) for axis in ([dim] if isinstance(dim, int) else dim)]


def _reducing(op: str) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Tensor, dim: Value = None, keepdim: bool = False, dtype: object = None) -> ir.Value:
        return _reduce(to, op, to.cast(x, to.out.dtype), axes_of(x, dim), keepdim)

    return lower


def _reduce(to: Call, op: str, x: Tensor | ir.Value, axes: list[int], keepdim: bool) -> ir.Value:
    if not axes:
        return x.value if isinstance(x, Tensor) else x
    if op == "ReduceSum":
        return to.emit(op, x, axes, keepdims=int(keepdim))
    return to.emit(op, x, axes=axes, keepdims=int(keepdim))


lowers("mean")(_reducing("ReduceMean"))
lowers("sum")(_reducing("ReduceSum"))
lowers("prod")(_reducing("ReduceProd"))
lowers("logsumexp")(_reducing("ReduceLogSumExp"))
lowers("amax")(_reducing("ReduceMax"))
lowers("amin")(_reducing("ReduceMin"))


@lowers("max", "min")
def extreme(to: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Value:
    """The largest or smallest of all; along an axis also where it is."""
    op = "ReduceMax" if to.name == "max" else "ReduceMin"
    if dim is None:
        return _reduce(to, op, x, list(range(x.rank)), False)
    axis = dim % max(x.rank, 1)
    where = to.emit("ArgMax" if to.name == "max" else "ArgMin", x, axis=axis, keepdims=int(keepdim))
    return _reduce(to, op, x, [axis], keepdim), where


@lowers("argmax", "argmin")
def place_of_extreme(to: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> ir.Value:
    """Where the largest or smallest is."""
    op = "ArgMax" if to.name == "argmax" else "ArgMin"
    if dim is None:
        return to.emit(op, to.emit("Reshape", x, [-1]), axis=0, keepdims=0)
    return to.emit(op, x, axis=dim % x.rank, keepdims=int(keepdim))


@lowers("any", "all")
def any_or_all(to: Call, x: Tensor, dim: Value = None, keepdim: bool = False) -> ir.Value:
    """Whether one is, or all are, true."""
    numbers = to.emit("Cast", to.cast(x, torch.bool), to=int(ir.DataType.INT32))
    op = "ReduceMax" if to.name == "any" else "ReduceMin"
    return to.cast(_reduce(to, op, numbers, axes_of(x, dim), keepdim), torch.bool, torch.int32)


@lowers("var", "std", "var_mean", "std_mean")
def variance(
    to: Call, x: Tensor, dim: Value = None, unbiased: bool = True, correction: Number | None = None,
    keepdim: bool = False,
) -> Value:  # fmt: skip
    """The variance or standard deviation, by default of a sample (`n - 1`)."""
    axes = axes_of(x, dim)
    less = (1 if unbiased else 0) if correction is None else correction
    mean = _reduce(to, "ReduceMean", x, axes, True)
    apart = to.emit("Sub", x, mean)
    result = _reduce(to, "ReduceMean", to.emit("Mul", apart, apart), axes, keepdim)
    if less:
        count = 1
        for axis in axes:
            length = x.size(axis)
            if length is None:
                raise Unsupported("takes the sample variance over a free axis; fix its size in `inputs`")
            count *= length
        result = to.emit("Mul", result, to.build.scalar(count / max(count - less, 0), x.dtype))
    if to.name.startswith("std"):
        result = to.emit("Sqrt", result)
    return (result, _reduce(to, "ReduceMean", x, axes, keepdim)) if to.name.endswith("_mean") else result


@lowers("norm", "linalg_vector_norm", "frobenius_norm")
def norm(
    to: Call, x: Tensor, p: Value = 2, ord: Value = None, dim: Value = None, keepdim: bool = False, dtype: object = None
) -> ir.Value:
    """A vector norm over axes."""
    kind = 2 if p is None and ord is None else p if ord is None else ord
    given, axes = to.cast(x, to.out.dtype), axes_of(x, dim)
    if kind in (1, 2):
        return _reduce(to, f"ReduceL{int(kind)}", given, axes, keepdim)
    size = to.emit("Abs", given)
    if kind in (float("inf"), float("-inf")):
        return _reduce(to, "ReduceMax" if kind > 0 else "ReduceMin", size, axes, keepdim)
    powers = to.emit("Pow", size, to.build.scalar(float(kind), to.out.dtype))
    return to.emit("Pow", _reduce(to, "ReduceSum", powers, axes, keepdim), to.build.scalar(1 / kind, to.out.dtype))


@lowers("cumsum")
def cumulative_sum(to: Call, x: Tensor, dim: int, dtype: object = None) -> ir.Value:
    """The sum up to each position."""
    return to.emit("CumSum", to.cast(x, to.out.dtype), np.array(dim, np.int64))


@lowers("topk")
def largest(
    to: Call, x: Tensor, k: Value, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[ir.Value, ...]:
    """The k largest along an axis, and where they are."""
    return to.emit("TopK", x, [k], axis=dim, largest=int(largest), sorted=int(sorted), outputs=2)


@lowers("sort")
def sort(
    to: Call, x: Tensor, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[ir.Value, ...]:
    """All along an axis in order, and where they were."""
    length = to.build.size(x, dim)
    return to.emit("TopK", x, [length], axis=dim, largest=int(descending), sorted=1, outputs=2)


@lowers("argsort")
def order_of(to: Call, x: Tensor, stable: bool | None = None, dim: int = -1, descending: bool = False) -> ir.Value:
    """Where the elements are that would be in order."""
    return sort(to, x, stable, dim, descending)[1]


@lowers("cosine_similarity")
def cosine_similarity(to: Call, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Value:
    """The product of both, each divided by its norm."""
    norms = [to.aten("clamp_min", to.aten("linalg_vector_norm", x, 2, [dim], True), eps) for x in (x1, x2)]
    a, b = (to.aten("div.Tensor", x, norm) for x, norm in zip((x1, x2), norms, strict=True))
    return to.aten("sum.dim_IntList", to.aten("mul.Tensor", a, b), [dim])


@lowers("pairwise_distance")
def pairwise_distance(
    to: Call, x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Value:
    """The norm of the difference along the last axis."""
    difference = to.aten("add.Scalar", to.aten("sub.Tensor", x1, x2), eps)
    return to.aten("linalg_vector_norm", difference, p, [-1], keepdim)
