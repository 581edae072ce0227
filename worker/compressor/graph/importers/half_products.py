"""Networks from torch in half precision, written so that onnxruntime runs them.

onnxruntime 1.32 crashes while it loads a float16 MatMul of a Transpose that moves the first axis (it fuses the two into an
operator that it has no kernel for). A Reshape to the same shape between them keeps them apart.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from worker.compressor.graph.network import Network


def part_products(network: Network) -> None:
    """Put a Reshape between each such Transpose and MatMul; networks in other precisions stay as they are."""
    if not any(array.dtype == np.float16 for array in network.tensors.values()):
        return
    for node in [node for node in network.graph if node.op_type == "MatMul"]:
        for slot, value in enumerate(node.inputs):
            if value is not None and _moves_first(value.producer()):
                _part(network, node, slot, value)
    network.changed()


def _moves_first(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return False
    order = list(node.attributes["perm"].as_ints())
    return len(order) > 2 and order[0] != 0 and order[-1] == len(order) - 1


def _part(network: Network, node: ir.Node, slot: int, value: ir.Value) -> None:
    producer = value.producer()
    assert producer is not None
    order = producer.attributes["perm"].as_ints()
    shape = network.add_tensor(f"{value.name}.shape", np.zeros(len(order), np.int64))
    between = ir.Node("", "Reshape", [value, shape], name=network.unique_name(f"{node.name}/Apart"))
    between.outputs[0].name = network.unique_name(f"{value.name}.apart")
    network.graph.insert_before(node, between)
    node.replace_input_with(slot, between.outputs[0])
