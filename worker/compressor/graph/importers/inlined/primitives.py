"""What TorchScript's own operators do to values: attributes, lists, tuples, dicts, sizes, and questions about tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from worker.compressor.graph.importers.aten import Builder, Free, Tensor, Unsupported, Value, apply
from worker.compressor.graph.importers.aten.scalars import compute
from worker.compressor.graph.importers.aten.values import has_free, is_number
from worker.compressor.graph.importers.inlined.enumerations import announce

if TYPE_CHECKING:
    from worker.compressor.graph.importers.inlined.walker import Walker

_SCALAR_TYPES = {
    0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
    7: torch.float64, 11: torch.bool, 15: torch.bfloat16,
}  # fmt: skip
_TYPE_NUMBERS = {dtype: number for number, dtype in _SCALAR_TYPES.items()}


class Module:
    """A module or submodule of the file, and the dotted path to it ("" for the whole)."""

    def __init__(self, held: Any, path: str) -> None:
        self.held = held
        self.path = path


def dtype_of(number: int) -> torch.dtype:
    """The dtype that TorchScript calls by this number."""
    if number not in _SCALAR_TYPES:
        raise Unsupported("makes numbers of a type that is not supported")
    return _SCALAR_TYPES[number]


def _attribute(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    owner, name = args[0], node.s("name")
    if not isinstance(owner, Module):
        raise Unsupported("reads an attribute of what is not a module")
    path = f"{owner.path}.{name}" if owner.path else name
    announce(node.output().type())
    return [walker.attribute(getattr(owner.held, name), path)]


def _set_attribute(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    raise Unsupported(f"keeps '{node.s('name')}' from one call to the next, so that the network has a memory,")


def _raise(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    raise Unsupported(f"is reached with these inputs: {args[0]}")


def _dict(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    return [dict(zip(args[::2], args[1::2], strict=True))]


def _item(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    return [args[0][args[1]]]


def _part(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    return [args[0][slice(node.i("beg"), node.i("end"))]]


def _same(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    return [args[0]]


def _unpack(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
    return list(args[0])


def _smallest_or_largest(name: str) -> Callable[..., Sequence[Value]]:
    def primitive(walker: Walker, node: Any, args: list[Value]) -> Sequence[Value]:
        numbers = args[0] if len(args) == 1 else args
        result = numbers[0]
        for number in numbers[1:]:
            result = compute(walker.build, name, [result, number])
        return [result]

    return primitive


Primitive = Callable[["Walker", Any, list[Value]], Sequence[Value]]

PRIMITIVES: dict[str, Primitive] = {
    "prim::Constant": lambda walker, node, args: [walker.constant(node)],
    "prim::GetAttr": _attribute,
    "prim::SetAttr": _set_attribute,
    "prim::RaiseException": _raise,
    "prim::ListConstruct": lambda walker, node, args: [list(args)],
    "prim::TupleConstruct": lambda walker, node, args: [tuple(args)],
    "prim::DictConstruct": _dict,
    "prim::ListUnpack": _unpack,
    "prim::TupleUnpack": _unpack,
    "prim::TupleIndex": _item,
    "prim::TupleSlice": _part,
    "prim::NumToTensor": _same,
    "prim::unchecked_cast": _same,
    "prim::unchecked_unwrap_optional": _same,
    "prim::data": _same,
    "prim::Uninitialized": lambda walker, node, args: [None],
    "prim::device": lambda walker, node, args: [torch.device("cpu")],
    "prim::type": lambda walker, node, args: [str(args[0])],
    "prim::layout": lambda walker, node, args: [0],
    "prim::dtype": lambda walker, node, args: [_type_number(args[0])],
    "prim::is_cuda": lambda walker, node, args: [False],
    "prim::is_nested": lambda walker, node, args: [False],
    "prim::is_sparse": lambda walker, node, args: [False],
    "prim::is_quantized": lambda walker, node, args: [False],
    "prim::is_mkldnn": lambda walker, node, args: [False],
    "prim::is_mps": lambda walker, node, args: [False],
    # as while training: the plain way through a layer, not one that calls a single fused operator
    "prim::requires_grad": lambda walker, node, args: [True],
    "prim::Print": lambda walker, node, args: [],
    "prim::min": _smallest_or_largest("min"),
    "prim::max": _smallest_or_largest("max"),
    "prim::abs": lambda walker, node, args: [compute(walker.build, "abs", args)],
    "prim::isinstance": lambda walker, node, args: [_is_of_type(node, args[0])],
}


def _type_number(value: Value) -> int:
    if isinstance(value, Tensor):
        return _TYPE_NUMBERS[value.dtype]
    return 6 if isinstance(value, float) else 4


def _is_of_type(node: Any, value: Value) -> bool:
    wanted = str(node.ts("types")) if hasattr(node, "ts") else ""
    if isinstance(value, Tensor):
        return "Tensor" in wanted
    raise Unsupported("asks for the type of a value that is not a tensor")


def _size(build: Builder, x: Value, dim: int | None = None) -> Value:
    if not isinstance(x, Tensor):
        return NotImplemented
    return build.shape(x) if dim is None else build.size(x, dim)


def _num_elements(build: Builder, x: Tensor) -> Value:
    total: Value = 1
    for size in build.shape(x):
        total = compute(build, "mul", [total, size])
    return total


def _get(build: Builder, holder: Value, key: Value) -> Value:
    if isinstance(key, Free):
        raise Unsupported("picks from a list by a free size")
    return holder[key]


def _set(build: Builder, holder: Value, key: Value, value: Value) -> Value:
    holder[key] = value
    return holder


def _append(build: Builder, holder: list[Value], value: Value) -> Value:
    holder.append(value)
    return holder


def _extend(build: Builder, holder: list[Value], values: list[Value]) -> None:
    holder.extend(values)


def _insert(build: Builder, holder: list[Value], index: int, value: Value) -> None:
    holder.insert(index, value)


def _list(build: Builder, holder: Value) -> Value:
    return list(holder)


def _sum(build: Builder, a: Value, b: Value, *alpha: Value) -> Value:
    return a + b if isinstance(a, list) and isinstance(b, list) else NotImplemented


def _times(build: Builder, a: Value, b: Value) -> Value:
    return a * b if isinstance(a, list) and isinstance(b, int) else NotImplemented


def _cut(build: Builder, holder: Value, *bounds: Value) -> Value:
    return holder[slice(*bounds)] if isinstance(holder, list | tuple | str) else NotImplemented


def _equal(wanted: bool) -> Callable[..., Value]:
    def on_values(build: Builder, a: Value, b: Value) -> Value:
        if isinstance(a, Tensor | Free) or isinstance(b, Tensor | Free):
            return NotImplemented
        if isinstance(a, list) and any(isinstance(item, Free) for item in (*a, *b)):
            pairs = [compute(build, "eq", [x, y]) for x, y in zip(a, b, strict=False)]
            return (len(a) == len(b) and all(pairs)) is wanted
        return (a == b) is wanted

    return on_values


def _is(wanted: bool) -> Callable[..., Value]:
    def on_values(build: Builder, a: Value, b: Value) -> Value:
        return ((a is b) if a is None or b is None else (a is b or a == b)) is wanted

    return on_values


def _whole(build: Builder, x: Value) -> Value:
    number = build.number(x)
    if isinstance(number, Free):
        return number if isinstance(number.trials[0], int) else _truncated(build, number)
    return int(number)


def _truncated(build: Builder, number: Free) -> Free:
    whole = build.emit("Cast", number.value, attributes={"to": 7})
    return Free(tuple(int(n) for n in number.trials), whole)


def _fraction(build: Builder, x: Value) -> Value:
    number = build.number(x)
    if isinstance(number, Free):
        real = build.emit("Cast", number.value, attributes={"to": 1})
        return Free(tuple(float(n) for n in number.trials), real)
    return float(number)


def _truth(build: Builder, x: Value) -> Value:
    number = build.number(x)
    return compute(build, "ne", [number, 0]) if isinstance(number, Free) else bool(number)


def _as_it_is(build: Builder, x: Value, *rest: Value) -> Value:
    """Numbers that tracing recorded as tensors."""
    return x if is_number(x) or isinstance(x, Free) else NotImplemented


def _spaced(build: Builder, start: int, stop: int, step: int) -> int:
    return len(range(start, stop, step))


def _total(build: Builder, x: Value, *rest: Value) -> Value:
    if not isinstance(x, list):
        return NotImplemented
    total: Value = 0
    for number in x:
        total = compute(build, "add", [total, number])
    return total


def _tensor(build: Builder, data: Value, dtype: int | None = None, *rest: Value) -> Value:
    if has_free(data) or isinstance(data, Tensor):
        return NotImplemented
    return build.known(torch.tensor(data, dtype=None if dtype is None else dtype_of(dtype)))


_INTERPOLATIONS = {
    ("nearest", 1): "upsample_nearest1d",
    ("nearest", 2): "upsample_nearest2d",
    ("nearest", 3): "upsample_nearest3d",
    ("linear", 1): "upsample_linear1d",
    ("bilinear", 2): "upsample_bilinear2d",
    ("trilinear", 3): "upsample_trilinear3d",
    ("bicubic", 2): "upsample_bicubic2d",
}


def _interpolate(
    build: Builder, x: Tensor, size: Value, scale_factor: Value = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute: bool | None = None, antialias: bool = False,
) -> Value:  # fmt: skip
    """`torch.nn.functional.interpolate`, which older and newer files call as one operator."""
    count = x.rank - 2
    if (mode, count) not in _INTERPOLATIONS or antialias or recompute:
        raise Unsupported(f"resizes in a way that is not supported ('{mode}' on {count} axes)")
    sizes, factors = (
        given if given is None or isinstance(given, list) else [given] * count for given in (size, scale_factor)
    )
    target = getattr(torch.ops.aten, _INTERPOLATIONS[mode, count]).vec
    corners = [] if mode == "nearest" else [bool(align_corners)]
    return apply(build, target, [x, sizes, *corners, factors])


ON_VALUES: dict[str, Callable[..., Value]] = {
    "size": _size,
    "sym_size": _size,
    "dim": lambda build, x: x.rank,
    "numel": _num_elements,
    "len": lambda build, x: build.size(x, 0) if isinstance(x, Tensor) else len(x),
    "__getitem__": _get,
    "_set_item": _set,
    "__contains__": lambda build, holder, key: key in holder,
    "append": _append,
    "extend": _extend,
    "insert": _insert,
    "pop": lambda build, holder, *key: holder.pop(*key),
    "copy": lambda build, holder: holder.copy() if isinstance(holder, list | dict) else NotImplemented,
    "reverse": lambda build, holder: holder.reverse(),
    "list": _list,
    "dict": lambda build, *items: dict(*items),
    "keys": lambda build, holder: list(holder.keys()),
    "values": lambda build, holder: list(holder.values()) if isinstance(holder, dict) else NotImplemented,
    "items": lambda build, holder: list(holder.items()),
    "get": lambda build, holder, key, default=None: holder.get(key, default),
    "add": _sum,
    "add_": _sum,
    "mul": _times,
    "slice": _cut,
    "eq": _equal(True),
    "ne": _equal(False),
    "__is__": _is(True),
    "__isnot__": _is(False),
    "Int": _whole,
    "IntImplicit": _whole,
    "Float": _fraction,
    "FloatImplicit": _fraction,
    "Bool": _truth,
    "ScalarImplicit": lambda build, x: build.number(x),
    "item": lambda build, x: build.number(x),
    "detach": _as_it_is,
    "to": _as_it_is,
    "clone": _as_it_is,
    "sum": _total,
    "__range_length": lambda build, low, high, step: _spaced(build, low, high, step),
    "__derive_index": lambda build, index, start, step: start + index * step,
    "is_floating_point": lambda build, x: x.dtype.is_floating_point,
    "is_contiguous": lambda build, x, *rest: True,
    "is_autocast_enabled": lambda build, *rest: False,
    "is_autocast_cpu_enabled": lambda build, *rest: False,
    "is_grad_enabled": lambda build: True,
    "is_scripting": lambda build: True,
    "tensor": _tensor,
    "__interpolate": _interpolate,
    "format": lambda build, text, *values: text.format(*(str(value) for value in values)),
    "percentFormat": lambda build, text, *values: text,
    "str": lambda build, value: str(value),
    "warn": lambda build, *rest: None,
    "lower": lambda build, text: text.lower(),
    "broadcast_tensors": lambda build, tensors: NotImplemented,
}
