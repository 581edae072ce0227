"""Tensors made of numbers. With fixed sizes they are computed at import; these are for sizes that are free."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.builder import DTYPES
from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value, is_number


@lowers("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty")
def filled(to: Call, size: list[int | Free], **options: Value) -> Value:
    """One number everywhere, in the size asked for."""
    return _filled(to, to.build.ints(size), _fill_value(to, options))


@lowers("zeros_like", "ones_like", "full_like", "empty_like", "fill", "zero")
def filled_like(to: Call, x: Tensor, **options: Value) -> Value:
    """One number everywhere, in the size of a tensor."""
    number = options.get("value") if to.name == "fill" else _fill_value(to, options)
    if all(size is not None for size in x.shape) and is_number(number):
        return to.build.known(torch.full(list(x.trials[0].shape), number, dtype=to.out.dtype))
    return _filled(to, to.emit("Shape", x), number)


def _fill_value(to: Call, options: dict[str, Value]) -> Value:
    if "fill_value" in options:
        return options["fill_value"]
    return 1 if "ones" in to.name else 0


def _filled(to: Call, shape: ir.Value, number: Value) -> Value:
    if not is_number(number):
        return to.emit("Expand", to.like(number, to.out.dtype), shape)
    content = torch.tensor([number], dtype=to.out.dtype)
    if to.out.dtype == torch.bfloat16:
        value = to.emit("Expand", to.build.known(content), shape)
    else:
        value = to.emit("ConstantOfShape", shape, value=ir.tensor(content.numpy()))
    return Tensor(to.out.trials, value, filled=number)


@lowers("arange")
def arange(to: Call, end: Value, start: Value = 0, step: Value = 1, **options: Value) -> ir.Value:
    """Numbers in steps, up to a bound that is free."""
    limits = [to.build.scalar(number, torch.int64) for number in (start, end, step)]
    if any(is_number(number) and not isinstance(number, int) for number in (start, end, step)):
        raise Unsupported("counts in fractions up to a free size")
    numbers = to.emit("Range", *limits)
    kind = DTYPES[to.out.dtype]
    return numbers if kind == ir.DataType.INT64 else to.emit("Cast", numbers, to=int(kind))


@lowers("scalar_tensor", "tensor", "as_tensor")
def scalar(to: Call, s: Value = None, data: Value = None, **options: Value) -> ir.Value:
    """A free number as a tensor."""
    number = data if s is None else s
    if isinstance(number, list):
        flat = to.build.ints(number)
        return to.cast(flat, to.out.dtype, torch.int64)
    return to.build.scalar(number, to.out.dtype)


@lowers("eye", "linspace")
def fixed_only(to: Call, **options: Value) -> ir.Value:
    """Only with fixed sizes, which are computed at import."""
    raise Unsupported("is not done with a free size; fix the size in `inputs`")


@lowers("one_hot")
def one_hot(to: Call, x: Tensor, num_classes: int = -1) -> ir.Value:
    """A 1 at the place of each number."""
    if num_classes < 0:
        raise Unsupported("makes as many classes as its data say")
    return to.emit("OneHot", x, to.build.scalar(num_classes, torch.int64), np.array([0, 1], np.int64), axis=-1)
