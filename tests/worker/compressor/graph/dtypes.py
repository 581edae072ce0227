"""Networks in other data types, converted as plainly as possible: every float becomes the other one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

DTYPES = {
    "float16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
    "float64": (np.dtype(np.float64), TensorProto.DOUBLE),
}


def converted(model: onnx.ModelProto, dtype: str, *, ports: bool = True) -> onnx.ModelProto:
    """A copy of a float32 model in another dtype; without `ports` float32 goes in and out and casts lie inside."""
    array_type, code = DTYPES[dtype]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        _convert(tensor, array_type)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert(attribute.t, array_type)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = code
    # Scales and sizes of Resize stay float32.
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            if ports:
                value.type.tensor_type.elem_type = code
            else:
                _cast(graph, value, code)
    del graph.value_info[:]
    return result


def _cast(graph: onnx.GraphProto, value: onnx.ValueInfoProto, code: int) -> None:
    inner, is_input = f"{value.name}.inner", value in graph.input
    for node in graph.node:
        names = node.input if is_input else node.output
        for i, name in enumerate(names):
            names[i] = inner if name == value.name else name
    if is_input:
        graph.node.insert(0, onnx.helper.make_node("Cast", [value.name], [inner], f"{value.name}/cast", to=code))
    else:
        graph.node.append(
            onnx.helper.make_node("Cast", [inner], [value.name], f"{value.name}/cast", to=TensorProto.FLOAT)
        )


def _convert(tensor: onnx.TensorProto, dtype: np.dtype) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
