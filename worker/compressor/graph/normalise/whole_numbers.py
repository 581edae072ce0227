"""Case 10: Cast of a constant to whole numbers becomes an initializer.

Files of opset 8 and before are written with their sizes and axes as such casts, of floats often. So are sizes that are
computed from constants (the square root of a number of positions).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

#: Shapes, axes and bounds have a few elements; a table of indices is read as it is.
_MOST_ELEMENTS = 4096
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.true_divide,
    "Pow": np.power,
    "Sqrt": np.sqrt,
    "Floor": np.floor,
    "Ceil": np.ceil,
}


def apply(model: ir.Model) -> None:
    """Replace every Cast of a small initializer to an integer or boolean type, one after another where they follow."""
    for node in list(model.graph):
        if node.op_type == "Cast" and node.domain == "":
            _replace(model.graph, node)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    dtype = ir.DataType(node.attributes["to"].as_int())
    if not (dtype.is_integer() or dtype == ir.DataType.BOOL) or output.is_graph_output():
        return
    with np.errstate(all="ignore"):  # of infinity: whatever it becomes
        numbers = _numbers(source)
        if numbers is None:
            return
        array = numbers.astype(dtype.numpy())
    made = ir.Value(name=output.name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
    made.const_value = ir.tensor(array, name=output.name)
    ir.convenience.replace_all_uses_with(output, made)
    graph.remove(node, safe=True)
    graph.register_initializer(made)


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant, or of arithmetic among floats that are."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy()) if value.const_value.size <= _MOST_ELEMENTS else None
    node = value.producer()
    if node is None or node.op_type not in _ARITHMETIC or node.domain != "":
        return None
    inputs = [_numbers(each) for each in node.inputs]
    floats = [array for array in inputs if array is not None and array.dtype.kind == "f"]
    return _ARITHMETIC[node.op_type](*floats) if len(floats) == len(inputs) else None
