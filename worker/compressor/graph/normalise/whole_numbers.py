"""Case 10: Cast of a constant to whole numbers becomes an initializer.

Files of opset 8 and before are written with their sizes and axes as such casts, of floats often.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

#: Shapes, axes and bounds have a few elements; a table of indices is read as it is.
_MOST_ELEMENTS = 4096


def apply(model: ir.Model) -> None:
    """Replace every Cast of a small initializer to an integer or boolean type, one after another where they follow."""
    for node in list(model.graph):
        if node.op_type == "Cast" and node.domain == "":
            _replace(model.graph, node)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    dtype = ir.DataType(node.attributes["to"].as_int())
    if source is None or source.const_value is None or source.is_graph_input() or output.is_graph_output():
        return
    if not (dtype.is_integer() or dtype == ir.DataType.BOOL) or source.const_value.size > _MOST_ELEMENTS:
        return
    with np.errstate(invalid="ignore"):  # of infinity: whatever it becomes
        array = np.asarray(source.const_value.numpy()).astype(dtype.numpy())
    made = ir.Value(name=output.name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
    made.const_value = ir.tensor(array, name=output.name)
    ir.convenience.replace_all_uses_with(output, made)
    graph.remove(node, safe=True)
    graph.register_initializer(made)
