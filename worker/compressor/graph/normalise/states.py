"""Case 7: recurrent operators in their plain form.

An initial state that is zero, however it is made (exporters compute its batch at run time), goes: an absent one means
zero. A first output that is left out gets a name, so that every node can be told by its first output.
"""

from __future__ import annotations

import onnx_ir as ir

_RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
#: Operators whose elements are all among those of their first input.
_MOVES = {
    "Slice",
    "Expand",
    "Identity",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Gather",
    "Tile",
    "Split",
    "Cast",
}


def apply(model: ir.Model) -> None:
    """Rewrite LSTM, GRU and RNN nodes."""
    taken = {value.name for node in model.graph for value in node.outputs}
    for node in model.graph:
        if node.op_type not in _RECURRENT or node.domain not in ("", "ai.onnx"):
            continue
        for slot in _RECURRENT[node.op_type]:
            if slot < len(node.inputs) and _is_zero(node.inputs[slot]):
                node.replace_input_with(slot, None)
        first = node.outputs[0]
        if not first.name:
            name = next(f"{value.name}.sequence" for value in node.outputs if value.name)
            while name in taken:
                name = f"{name}.1"
            taken.add(name)
            first.name = name


def _is_zero(value: ir.Value | None) -> bool:
    """Whether every element is zero, whatever the shapes at run time."""
    if value is None:
        return False
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "ConstantOfShape":
        return "value" not in node.attributes or not node.attributes["value"].as_tensor().numpy().any()
    if node.op_type == "Concat":
        return all(_is_zero(part) for part in node.inputs)
    return node.op_type in _MOVES and _is_zero(node.inputs[0])
