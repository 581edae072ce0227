"""Operators that arrange elements anew: shapes, axes, joins and repetitions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value


@lowers(
    "contiguous", "clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "positive", "dropout", "feature_dropout",
    "alpha_dropout", "feature_alpha_dropout", "native_dropout", "rrelu",
)  # fmt: skip
def pass_through(to: Call, x: Tensor | None = None, input: Tensor | None = None, **options: Value) -> Value:
    """The same tensor; dropout is nothing at inference, and refused where it is on."""
    held = x if x is not None else input
    assert held is not None
    if to.name == "rrelu":
        low, high = options.get("lower", 1 / 8), options.get("upper", 1 / 3)
        return to.emit("LeakyRelu", held, alpha=(low + high) / 2) if not options.get("training") else _random()
    if options.get("train", options.get("training", False)) and options.get("p", 0.5) != 0:
        return _random()
    return Tensor(to.out.trials, held.value, known=held.known)


def _random() -> Value:
    raise Unsupported("is random, because it is in training mode; call eval() before saving")


@lowers("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "_reshape_alias")
def reshape(to: Call, x: Tensor, **options: Value) -> Value:
    """The same elements in another shape: what torch says it is in the trials."""
    if isinstance(options.get("dtype"), torch.dtype):
        raise Unsupported("reads the bits of numbers as another type")
    return Tensor(to.out.trials, to.emit("Reshape", x, target_shape(to, x, options.get("size", options.get("shape")))))


def target_shape(to: Call, x: Tensor, asked: Value = None) -> list[int | Free]:
    """The shape of the result: numbers, 0 where an axis stays as it is, -1 for one that is free, else what was asked."""
    sizes: list[int | Free] = []
    unknown = []
    for axis in range(to.out.rank):
        fixed = to.out.size(axis)
        if fixed is not None:
            sizes.append(fixed)
        elif axis < x.rank and to.out.sizes(axis) == x.sizes(axis):
            sizes.append(0)
        else:
            unknown.append(axis)
            sizes.append(-1)
    if any(size == 0 and to.out.size(axis) == 0 for axis, size in enumerate(sizes)):
        raise Unsupported("makes a tensor without elements")
    if len(unknown) > 1:
        numbers = list(asked) if isinstance(asked, list | tuple) else []
        for axis in unknown:
            number = numbers[axis] if axis < len(numbers) else None
            if isinstance(number, Free):
                sizes[axis] = number
        if sum(1 for size in sizes if isinstance(size, int) and size == -1) > 1:
            _from_axes(to, x, sizes)
    return sizes


def _from_axes(to: Call, x: Tensor, sizes: list[int | Free]) -> None:
    """Free axes that were not asked for by number: each is one of the input's, else one may be left open."""
    for axis, size in enumerate(sizes):
        if isinstance(size, int) and size == -1:
            match = next((i for i in range(x.rank) if x.sizes(i) == to.out.sizes(axis)), None)
            if match is not None:
                sizes[axis] = to.build.size(x, match)
    if sum(1 for size in sizes if isinstance(size, int) and size == -1) > 1:
        raise Unsupported("makes a shape with several free axes that is not understood")


@lowers("permute")
def permute(to: Call, x: Tensor, dims: list[int]) -> ir.Value:
    """Axes in another order."""
    return to.emit("Transpose", x, perm=[dim % x.rank for dim in dims])


@lowers("transpose", "swapaxes", "swapdims")
def transpose(
    to: Call, x: Tensor, dim0: int | None = None, dim1: int | None = None, axis0: int | None = None,
    axis1: int | None = None,
) -> Value:  # fmt: skip
    """Two axes exchanged."""
    first, second = (a if a is not None else b for a, b in ((dim0, axis0), (dim1, axis1)))
    assert first is not None and second is not None
    order = list(range(x.rank))
    first, second = first % max(x.rank, 1), second % max(x.rank, 1)
    if first == second:
        return x
    order[first], order[second] = second, first
    return to.emit("Transpose", x, perm=order)


@lowers("t", "numpy_T", "mT", "adjoint")
def transpose_matrix(to: Call, x: Tensor) -> Value:
    """The last two axes exchanged."""
    if x.rank < 2:
        return x
    if to.name == "numpy_T":
        return to.emit("Transpose", x, perm=list(range(x.rank))[::-1])
    return transpose(to, x, x.rank - 2, x.rank - 1)


@lowers("movedim", "moveaxis")
def move_axes(to: Call, x: Tensor, source: Value, destination: Value) -> ir.Value:
    """Axes put elsewhere, the others in their order."""
    sources = [axis % x.rank for axis in ([source] if isinstance(source, int) else source)]
    targets = [axis % x.rank for axis in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(axis for axis in range(x.rank) if axis not in sources)
    places = dict(zip(targets, sources, strict=True))
    order = [places[axis] if axis in places else next(rest) for axis in range(x.rank)]
    return to.emit("Transpose", x, perm=order)


@lowers("unsqueeze")
def unsqueeze(to: Call, x: Tensor, dim: int) -> ir.Value:
    """A new axis of length 1."""
    return to.emit("Unsqueeze", x, [dim % (x.rank + 1)])


@lowers("squeeze")
def squeeze(to: Call, x: Tensor, dim: Value = None) -> Value:
    """Axes of length 1 left out: of those named, or all."""
    asked = range(x.rank) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [axis % max(x.rank, 1) for axis in asked]
    axes = [axis for axis in axes if x.rank and x.size(axis) == 1]
    return to.emit("Squeeze", x, axes) if axes else x


@lowers("expand", "expand_as", "broadcast_to")
def expand(to: Call, x: Tensor, size: Value = None, other: Tensor | None = None, implicit: bool = False) -> Value:
    """Axes of length 1 repeated."""
    if x.trials[0].shape == to.out.trials[0].shape:
        return x
    lead = to.out.rank - x.rank
    wanted: list[int | Free] = []
    for axis in range(to.out.rank):
        fixed = to.out.size(axis)
        if axis >= lead and to.out.sizes(axis) == x.sizes(axis - lead):
            wanted.append(1)  # the input's own length
        elif fixed is not None:
            wanted.append(fixed)
        else:
            wanted.append(_asked_size(to, axis, size, other))
    return to.emit("Expand", x, wanted)


def _asked_size(to: Call, axis: int, size: Value, other: Tensor | None) -> int | Free:
    if other is not None:
        return to.build.size(other, axis)
    number = size[axis]
    if isinstance(number, int | Free):
        return number
    raise Unsupported("expands to a size that is not understood")


@lowers("repeat")
def repeat(to: Call, x: Tensor, repeats: list[int | Free]) -> Value:
    """The whole tensor several times along each axis."""
    return _tile(to, x, repeats)


@lowers("tile")
def tile(to: Call, x: Tensor, dims: list[int | Free]) -> Value:
    """The whole tensor several times along the last axes."""
    return _tile(to, x, [*[1] * (x.rank - len(dims)), *dims])


def _tile(to: Call, x: Tensor, repeats: Sequence[int | Free]) -> Value:
    lead = len(repeats) - x.rank
    whole = to.emit("Unsqueeze", x, list(range(lead))) if lead else x
    if all(isinstance(number, int) and number == 1 for number in repeats):
        return whole
    return to.emit("Tile", whole, repeats)


@lowers("repeat_interleave")
def repeat_each(to: Call, x: Tensor, repeats: Value, dim: int | None = None, output_size: Value = None) -> Value:
    """Every element along an axis several times in a row."""
    if not isinstance(repeats, int) or dim is None:
        raise Unsupported("repeats elements in numbers that are not fixed")
    axis = dim % x.rank
    sizes = [1] * (x.rank + 1)
    sizes[axis + 1] = repeats
    tiled = to.emit("Tile", to.emit("Unsqueeze", x, [axis + 1]), sizes)
    return to.emit("Reshape", tiled, target_shape(to, x))


@lowers("cat", "concat", "concatenate")
def concatenate(to: Call, tensors: list[Tensor], dim: int = 0) -> Value:
    """Tensors one after the other along an axis."""
    present = [tensor for tensor in tensors if tuple(tensor.trials[0].shape) != (0,)]
    if len(present) == 1:
        return present[0]
    parts = [to.cast(tensor, to.out.dtype) for tensor in present]
    return to.emit("Concat", *parts, axis=dim % to.out.rank)


@lowers("stack")
def stack(to: Call, tensors: list[Tensor], dim: int = 0) -> ir.Value:
    """Tensors along a new axis."""
    axis = dim % to.out.rank
    parts = [to.emit("Unsqueeze", to.cast(tensor, to.out.dtype), [axis]) for tensor in tensors]
    return to.emit("Concat", *parts, axis=axis)


@lowers("flip")
def flip(to: Call, x: Tensor, dims: list[int]) -> ir.Value:
    """Axes read backwards."""
    count = len(dims)
    axes = [dim % x.rank for dim in dims]
    return to.emit("Slice", x, [-1] * count, [-(1 << 62)] * count, axes, [-1] * count)


@lowers("roll")
def roll(to: Call, x: Tensor, shifts: Value, dims: Value = ()) -> Value:
    """Axes turned by some places."""
    turns = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if not axes or not all(isinstance(turn, int) for turn in turns):
        raise Unsupported("is only done along named axes by fixed numbers")
    value = x.value
    for turn, axis in zip(turns, axes, strict=True):
        length = x.size(axis)
        if length is not None:
            turn %= length
        if turn == 0:
            continue
        head = to.emit("Slice", value, [-turn], [1 << 62], [axis % x.rank])
        tail = to.emit("Slice", value, [0], [-turn], [axis % x.rank])
        value = to.emit("Concat", head, tail, axis=axis % x.rank)
    return value


@lowers("pixel_shuffle")
def pixel_shuffle(to: Call, x: Tensor, upscale_factor: int) -> ir.Value:
    """Channels to pixels."""
    if x.rank != 4:
        raise Unsupported("is only done on four axes")
    return to.emit("DepthToSpace", x, blocksize=upscale_factor, mode="CRD")


@lowers("pixel_unshuffle")
def pixel_unshuffle(to: Call, x: Tensor, downscale_factor: int) -> Value:
    """Pixels to channels, the channel first: as reshapes, because SpaceToDepth puts the pixel first."""
    if x.rank != 4:
        raise Unsupported("is only done on four axes")
    r = downscale_factor
    n, c, h, w = to.build.shape(x)
    rows = to.build.compute("Div", lambda a, b: a // b, h, r)
    columns = to.build.compute("Div", lambda a, b: a // b, w, r)
    split = to.emit("Reshape", x, [n, c, rows, r, columns, r])  # type: ignore[list-item]
    moved = to.emit("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return to.emit("Reshape", moved, target_shape(to, x))


@lowers("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(to: Call, x: Tensor, groups: int) -> Value:
    """Channels of the groups in turn."""
    channels = x.size(1)
    if channels is None:
        raise Unsupported("shuffles a number of channels that is not fixed")
    split = to.emit("Reshape", x, [0, groups, channels // groups, -1])
    return to.emit("Reshape", to.emit("Transpose", split, perm=[0, 2, 1, 3]), target_shape(to, x))


@lowers("to", "_to_copy", "type_as", "_autocast_to_reduced_precision", "_autocast_to_full_precision")
def convert(to: Call, x: Tensor, **options: Value) -> Value:
    """Another dtype; a device means nothing here."""
    return Tensor(to.out.trials, to.cast(x, to.out.dtype), known=None)


@lowers("copy")
def copy(to: Call, x: Tensor, src: Tensor) -> ir.Value:
    """Another tensor's content, in this one's shape and dtype."""
    held = to.cast(src, x.dtype)
    if src.trials[0].shape == x.trials[0].shape:
        return held
    return to.emit("Expand", held, to.build.shape(x))


@lowers("unfold")
def unfold(to: Call, x: Tensor, dimension: int, size: int, step: int) -> Value:
    """Windows along an axis, each along a new last axis."""
    axis, length = dimension % x.rank, x.size(dimension)
    if length is None:
        raise Unsupported("takes windows of an axis that is free; fix its size in `inputs`")
    starts = torch.arange(0, length - size + 1, step)
    index = to.build.known(starts[:, None] + torch.arange(size)[None])
    windows = to.emit("Gather", x, index, axis=axis)  # [..., windows, size, ...]
    order = [*range(axis + 1), *range(axis + 2, x.rank + 1), axis + 1]
    return to.emit("Transpose", windows, perm=order)
