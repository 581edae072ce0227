"""Case 11: BatchNormalization in training mode of a weight [1, outputs, inputs] becomes InstanceNormalization.

Networks without normaliser (Brock et al. 2021, arXiv 2101.08692) standardise the rows of their weights this way. With
one sample both compute the same, and only the second can be run for inference. Of activations it stays, and is refused.
"""

from __future__ import annotations

import onnx_ir as ir

from worker.compressor.graph.network import Network

_EPSILON = 1e-5


def apply(network: Network) -> None:
    """Replace every BatchNormalization in training mode that reads a reshaped constant of one sample."""
    for node in list(network.graph):
        if node.op_type == "BatchNormalization" and node.domain == "" and _trains(node):
            _replace(network, node)


def _trains(node: ir.Node) -> bool:
    return "training_mode" in node.attributes and node.attributes["training_mode"].as_int() == 1


def _replace(network: Network, node: ir.Node) -> None:
    reads_others = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if reads_others or not _is_one_sample_of_a_weight(network, node.inputs[0]):
        return
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _EPSILON
    made = ir.Node(
        "", "InstanceNormalization", list(node.inputs[:3]), [ir.AttrFloat32("epsilon", epsilon)], name=node.name
    )
    output, name = node.outputs[0], node.outputs[0].name
    made.outputs[0].shape, made.outputs[0].type = output.shape, output.type
    network.graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)
    network.graph.remove(node, safe=True)
    made.outputs[0].name = name
    network.changed()


def _is_one_sample_of_a_weight(network: Network, value: ir.Value | None) -> bool:
    if value is not None and value.name in network.tensors:
        return network.tensors[value.name].shape[0] == 1
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Reshape":
        return False
    source, sizes = maker.inputs
    shape = None if sizes is None else network.tensors.get(sizes.name or "")
    return source is not None and source.name in network.tensors and shape is not None and shape.reshape(-1)[0] == 1
