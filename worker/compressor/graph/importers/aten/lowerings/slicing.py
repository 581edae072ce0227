"""Parts of tensors: slices, splits, and elements by index."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value

_END = 1 << 62


@lowers("slice")
def slice_(to: Call, x: Tensor, dim: int = 0, start: Value = None, end: Value = None, step: int = 1) -> Value:
    """Positions of one axis from `start` up to `end`."""
    begin = 0 if start is None else start
    stop = _END if end is None or (isinstance(end, int) and end > _END) else end
    axis = dim % x.rank
    if to.out.sizes(axis) == x.sizes(axis) and step == 1:
        return x
    return to.emit("Slice", x, [begin], [stop], [axis], [step])


@lowers("slice_scatter")
def put_slice(
    to: Call, x: Tensor, src: Tensor, dim: int = 0, start: Value = None, end: Value = None, step: int = 1
) -> Value:
    """The tensor with another one in place of a slice: what lies before, the other one, what lies after."""
    length = x.size(dim)
    if step != 1 or not all(bound is None or isinstance(bound, int) for bound in (start, end)) or length is None:
        raise Unsupported("puts values at positions that are not fixed")
    first, last, _ = slice(start, end).indices(length)
    axis = dim % x.rank
    parts = [to.cast(src, x.dtype)]
    if first > 0:
        parts.insert(0, to.emit("Slice", x, [0], [first], [axis]))
    if last < length:
        parts.append(to.emit("Slice", x, [last], [_END], [axis]))
    return to.emit("Concat", *parts, axis=axis)


@lowers("select_scatter")
def put_position(to: Call, x: Tensor, src: Tensor, dim: int, index: Value) -> Value:
    """The tensor with another one at a position of an axis."""
    length = x.size(dim)
    if not isinstance(index, int) or length is None:
        raise Unsupported("puts values at positions that are not fixed")
    where = index % length
    return to.aten("slice_scatter", x, to.aten("unsqueeze", src, dim % x.rank), dim, where, where + 1)


@lowers("narrow")
def narrow(to: Call, x: Tensor, dim: int, start: Value, length: Value) -> Value:
    """So many positions of one axis."""
    begin = to.build.number(start)
    stop = to.build.compute("Add", lambda a, b: a + b, begin, length)
    if isinstance(begin, int) and isinstance(stop, int) and begin < 0 <= stop:
        stop = _END
    return to.emit("Slice", x, [begin], [stop], [dim % x.rank])  # type: ignore[list-item]


@lowers("select")
def select(to: Call, x: Tensor, dim: int, index: Value) -> ir.Value:
    """One position of one axis."""
    where = to.build.scalar(to.build.number(index), torch.int64)
    return to.emit("Gather", x, where, axis=dim % x.rank)


@lowers("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def split(to: Call, x: Tensor, dim: int = 0, **sizes: Value) -> list[ir.Value]:
    """Consecutive parts of one axis, as long as torch makes them."""
    axis = dim % x.rank
    lengths = [part.size(axis) for part in to.results]
    if len(to.results) == 1:
        return [x.value]
    if all(length is not None for length in lengths):
        made = to.emit("Split", x, [n for n in lengths if n is not None], axis=axis, outputs=len(lengths))
        return list(made)
    if "chunks" in sizes or to.name == "split_with_sizes":
        raise Unsupported("splits a free axis; fix its size in `inputs`")
    raise Unsupported("splits a free axis into a number of parts that depends on its size; fix its size in `inputs`")


@lowers("unbind")
def unbind(to: Call, x: Tensor, dim: int = 0) -> list[ir.Value]:
    """Every position of one axis."""
    axis = dim % x.rank
    if x.size(axis) is None:
        raise Unsupported("takes apart an axis that is free; fix its size in `inputs`")
    return [to.emit("Gather", x, to.build.scalar(i, torch.int64), axis=axis) for i in range(len(to.results))]


@lowers("embedding")
def embedding(
    to: Call, weight: Tensor, indices: Tensor, padding_idx: Value = -1, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> ir.Value:  # fmt: skip
    """Rows of the weight by number."""
    return to.emit("Gather", weight, indices, axis=0)


@lowers("index_select")
def index_select(to: Call, x: Tensor, dim: int, index: Tensor) -> ir.Value:
    """Positions of one axis by number."""
    return to.emit("Gather", x, index, axis=dim % x.rank)


@lowers("gather")
def gather(to: Call, x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> ir.Value:
    """For each place of the index, the element at that position of one axis."""
    return to.emit("GatherElements", x, index, axis=dim % x.rank)


@lowers("index")
def index_(to: Call, x: Tensor, indices: list[Tensor | None]) -> Value:
    """Elements by lists of numbers along one axis, or along the first few at once."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for _, index in given):
        raise Unsupported("picks by a mask, so that the number of elements depends on the data")
    if len(given) == 1:
        axis, index = given[0]
        return to.emit("Gather", x, index, axis=axis)
    axes = [axis for axis, _ in given]
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise Unsupported("picks along several axes that are not neighbours")
    common = _broadcast(to, [index for _, index in given])
    parts = [to.emit("Unsqueeze", _spread(to, index, common), [-1]) for _, index in given]
    places = to.emit("Concat", *parts, axis=-1)
    if axes[0] == 0:
        return to.emit("GatherND", x, places)
    last = axes[-1]
    order = [*axes, *range(axes[0]), *range(last + 1, x.rank)]
    picked = to.emit("GatherND", to.emit("Transpose", x, perm=order), places)
    lead, num_common = axes[0], len(common)
    back = [*range(num_common, num_common + lead), *range(num_common), *range(num_common + lead, to.out.rank)]
    return to.emit("Transpose", picked, perm=back)


def _broadcast(to: Call, tensors: list[Tensor]) -> list[int | Free]:
    """The shape that the tensors have together: of each axis the length that is not 1."""
    found: list[int | Free] = []
    for back in range(max(tensor.rank for tensor in tensors), 0, -1):
        there = [tensor for tensor in tensors if tensor.rank >= back and tensor.size(tensor.rank - back) != 1]
        there.sort(key=lambda tensor: tensor.size(tensor.rank - back) is None)  # rather a number than a computed one
        found.append(to.build.size(there[0], there[0].rank - back) if there else 1)
    return found


def _spread(to: Call, index: Tensor, shape: list[int | Free]) -> Any:
    whole = to.cast(index, torch.int64)
    return whole if list(index.shape) == shape else to.emit("Expand", whole, shape)


@lowers("scatter", "scatter_add")
def scatter(to: Call, x: Tensor, dim: int, index: Tensor, src: Value = None, value: Value = None) -> ir.Value:
    """Elements put at positions of one axis."""
    updates = src.value if isinstance(src, Tensor) else None
    if updates is None:
        raise Unsupported("puts one number at many places")
    reduction = "add" if to.name == "scatter_add" else None
    return to.emit("ScatterElements", x, index, updates, axis=dim % x.rank, reduction=reduction)


@lowers("tril", "triu")
def triangle(to: Call, x: Tensor, diagonal: Value = 0) -> ir.Value:
    """One triangle of the last two axes, the rest 0."""
    if x.dtype == torch.bool:
        kept = to.emit(
            "Trilu", to.cast(x, torch.int64), to.build.scalar(diagonal, torch.int64), upper=int(to.name == "triu")
        )
        return to.cast(kept, torch.bool, torch.int64)
    where = to.build.scalar(diagonal, torch.int64)
    return to.emit("Trilu", x, where, upper=int(to.name == "triu"))
