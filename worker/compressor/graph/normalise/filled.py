"""Case 2: ConstantOfShape over a constant shape becomes an initializer (weights of graph-only files are made so).

Small whole numbers are left: they are part of shape arithmetic.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

#: More elements than any layer of a real network has; a bomb otherwise.
_MOST_ELEMENTS = 1 << 28


def apply(model: ir.Model) -> None:
    """Replace every ConstantOfShape node that makes floats of a constant shape."""
    for node in list(model.graph):
        if node.op_type == "ConstantOfShape" and node.domain == "":
            _replace(model.graph, node)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    shape = node.inputs[0].const_value if node.inputs[0] is not None else None
    value = node.attributes["value"].value.numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    output = node.outputs[0]
    if shape is None or value.dtype.kind in "iub" or output.is_graph_output():
        return
    sizes = [int(size) for size in shape.numpy()]
    if math.prod(sizes) > _MOST_ELEMENTS:
        return
    array = np.full(sizes, value.reshape(-1)[0])
    made = ir.Value(name=output.name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(sizes))
    made.const_value = ir.tensor(array, name=output.name)
    ir.convenience.replace_all_uses_with(output, made)
    graph.remove(node, safe=True)
    graph.register_initializer(made)
