"""Case 5: `value_info` of inner values goes, because a shape recorded before a cut is wrong after it."""

from __future__ import annotations

import onnx_ir as ir


def apply(model: ir.Model) -> None:
    """Forget types and shapes of all values that a node makes, but those of the outputs."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
