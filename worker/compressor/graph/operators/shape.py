"""Shapes as numbers: Shape, Size, Cast, ConstantOfShape, Range, Where."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.operators.movement import lengths
from worker.compressor.graph.proxies import as_real, as_whole, is_real
from worker.compressor.graph.sizes import choose, known_as
from worker.compressor.graph.walk import Walk

_TORCH_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
    onnx.TensorProto.BOOL: torch.bool,
}


def _shape(call: Call) -> np.ndarray:
    x, rank = call.tensor(0), call.rank(0)
    axes = range(rank)[slice(call.attribute("start", 0), call.attribute("end"))]
    sizes: list[Any] = [x.size(axis) for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        return np.array(sizes, dtype=np.int64)
    numbers = np.empty(len(sizes), dtype=object)
    for index, size in enumerate(sizes):  # one by one: numpy must not look into a proxy
        numbers[index] = size
    return numbers


def _shape_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array(arrays[0].shape[slice(node.attributes.get("start", 0), node.attributes.get("end"))], dtype=np.int64)


def _size(call: Call) -> np.ndarray:
    sizes = [call.tensor(0).size(axis) for axis in range(call.rank(0))]
    number = np.empty((), dtype=object)
    number[()] = functools.reduce(operator.mul, sizes, 1)
    return np.asarray(number.item(), np.int64) if isinstance(number.item(), int) else number


def _size_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(arrays[0].size, np.int64)


def _no_channels(walk: Walk, node: Node) -> None:
    """The output holds numbers about the tensor, not its channels; what reads them is rewritten where it was cut."""


def _cast(call: Call) -> Any:
    if call.attribute("to") not in _TORCH_DTYPES:
        raise call.refuse("casts to a type that is not supported")
    return call.tensor(0).to(_TORCH_DTYPES[call.attribute("to")])


def _cast_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    if arrays[0].dtype != object:
        return arrays[0].astype(dtype)
    if dtype.kind == "b":
        return None
    turn = as_real if dtype.kind == "f" else lambda number: as_whole(number) if is_real(number) else number
    return _each(turn, arrays[0])


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The function of each element (of broadcast arrays); the results may be proxies, which numpy must not look into."""
    whole = np.broadcast_arrays(*arrays)
    results = np.empty(whole[0].shape, object)
    for index in np.ndindex(results.shape):
        results[index] = function(*(array[index] for array in whole))
    return results


def _cast_like(call: Call) -> Any:
    return call.tensor(0).to(call.dtype(1))


def _constant_of_shape(call: Call) -> Any:
    value = call.attribute("value", np.zeros(1, np.float32))
    dtype = _TORCH_DTYPES[onnx.helper.np_dtype_to_tensor_dtype(value.dtype)]
    return torch.full(call.ints(0), value.reshape(-1)[0].item(), dtype=dtype, device=call.device)


def _constant_of_shape_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    value = node.attributes.get("value", np.zeros(1, np.float32))
    return np.full([int(size) for size in arrays[0].tolist()], value.reshape(-1)[0])


def _where(call: Call) -> Any:
    return torch.where(call.tensor(0), *call.operands(1))


def _where_known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
    return known_as(np.where, choose)(node, arrays)


def _range_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.arange(*(array.item() for array in arrays)).astype(arrays[0].dtype)


def _range(call: Call) -> Any:
    dtype, bounds = call.dtype(0), []
    for slot in range(3):
        known = call.known(slot)
        turn = as_real if dtype.is_floating_point else as_whole
        bounds.append(turn(call.value(slot)) if known is None else known.item())
    return torch.arange(*bounds, dtype=dtype, device=call.device)


register(
    Operator(
        op="Shape",
        versions=(1, 13, 15, 19, 21, 23, 24, 25),
        run=_shape,
        channels=_no_channels,
        known=_shape_known,
    )
)
register(
    Operator(
        op="Cast",
        versions=(6, 9, 13, 19, 21, 23, 24, 25, 28),
        run=_cast,
        channels=lambda walk, node: walk.keep(node),
        known=_cast_known,
    )
)
register(
    Operator(
        op="ConstantOfShape",
        versions=(9, 20, 21, 23, 24, 25),
        run=_constant_of_shape,
        channels=_no_channels,
        known=_constant_of_shape_known,
        data=(),
        rewrite=lambda view, node: lengths(view, node, 0, lambda size: size > 1),
    )
)
register(Operator(op="Size", versions=(1, 13, 19, 21, 23, 24, 25), run=_size, channels=_no_channels, known=_size_known))
register(
    Operator(
        op="CastLike",
        versions=(15, 19, 21, 23, 24, 25),
        run=_cast_like,
        channels=lambda walk, node: walk.keep(node),
    )
)
register(Operator(op="Range", versions=(11, 27), run=_range, channels=_no_channels, known=_range_known, data=()))
register(
    Operator(op="Where", versions=(9, 16), run=_where, known=_where_known, channels=lambda walk, node: walk.join(node))
)
