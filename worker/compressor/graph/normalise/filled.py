"""Case 2: ConstantOfShape over a constant shape becomes an initializer (weights of graph-only files are made so).

Small whole numbers are left: they are part of shape arithmetic. Where only some sizes are constant (the first state of a
recurrent loop, one row per sample), the initializer has those, and an Expand makes the others.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from worker.compressor.graph.normalise.names import unique, value_names

#: More elements than any layer of a real network has; a bomb otherwise.
_MOST_ELEMENTS = 1 << 28
_FIRST_OPSET_OF_EXPAND = 8


def apply(model: ir.Model) -> set[str]:
    """Replace every ConstantOfShape node that makes floats of a shape of which numbers are constant.

    Returns the names of initializers that the file has not.
    """
    made = set()
    for node in list(model.graph):
        if node.op_type == "ConstantOfShape" and node.domain == "" and not node.outputs[0].is_graph_output():
            _replace(model.graph, node)
            if node.graph is not None and model.opset_imports.get("", 0) >= _FIRST_OPSET_OF_EXPAND:
                made |= _stretch(model.graph, node)
    return made


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    shape, value, output = node.inputs[0], _filling(node), node.outputs[0]
    if shape is None or shape.const_value is None or value.dtype.kind in "iub":
        return
    sizes = [int(size) for size in shape.const_value.numpy()]
    if math.prod(sizes) > _MOST_ELEMENTS:
        return
    made = _constant(output.name or "", sizes, value)
    ir.convenience.replace_all_uses_with(output, made)
    graph.remove(node, safe=True)
    graph.register_initializer(made)


def _stretch(graph: ir.Graph, node: ir.Node) -> set[str]:
    value, output = _filling(node), node.outputs[0]
    sizes = _sizes(node.inputs[0])
    if sizes is None or value.dtype.kind in "iub" or max(sizes) == 1 or math.prod(sizes) > _MOST_ELEMENTS:
        return set()
    one_row = _constant(unique(f"{output.name}.filled", value_names(graph)), sizes, value)
    graph.register_initializer(one_row)
    stretched = ir.node("Expand", [one_row, node.inputs[0]], name=node.name)
    stretched.outputs[0].name, stretched.outputs[0].type = output.name, output.type
    graph.insert_before(node, stretched)
    ir.convenience.replace_all_uses_with(output, stretched.outputs[0])
    graph.remove(node, safe=True)
    return {one_row.name or ""}


def _filling(node: ir.Node) -> np.ndarray:
    return node.attributes["value"].value.numpy() if "value" in node.attributes else np.zeros(1, np.float32)


def _constant(name: str, sizes: list[int], value: np.ndarray) -> ir.Value:
    array = np.full(sizes, value.reshape(-1)[0])
    made = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(sizes))
    made.const_value = ir.tensor(array, name=name)
    return made


def _sizes(shape: ir.Value | None) -> list[int] | None:
    """The numbers of a shape that is put together, 1 for each that is computed; None where their number is not plain."""
    node = None if shape is None else shape.producer()
    if shape is not None and shape.const_value is not None:
        return [int(size) for size in shape.const_value.numpy().reshape(-1)]
    if node is None or node.domain != "":
        return None
    if node.op_type == "Concat":
        parts = [_sizes(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [size for part in parts for size in part or ()]
    if node.op_type in ("Cast", "Identity"):
        return _sizes(node.inputs[0])
    if node.op_type == "Unsqueeze":
        return [1]
    if node.op_type == "Shape" and {"start", "end"} <= node.attributes.keys():
        start, end = (node.attributes[name].as_int() for name in ("start", "end"))
        return [1] * (end - start) if 0 <= start < end else None
    indices = node.inputs[1].const_value if node.op_type == "Gather" and node.inputs[1] is not None else None
    return [1] * len(indices.numpy()) if indices is not None and indices.numpy().ndim == 1 else None
