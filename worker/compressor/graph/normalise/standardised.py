"""Case 11: BatchNormalization in training mode of a weight [1, outputs, inputs] becomes what can be run for inference.

Networks without normaliser (Brock et al. 2021, arXiv 2101.08692) standardise the rows of their weights this way. With
one sample InstanceNormalization computes the same. Exporters write mean and variance beside it as operators that read
the weight, by which it counts as one; there it is written out, so that it goes on counting. Of activations it stays, and
is refused.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from worker.compressor.graph.network import Network, Origin

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
    counts = len(node.inputs) > 3 and node.inputs[3] is not None and node.inputs[3].producer() is not None
    made = _written_out(network, node, epsilon) if counts else _instance_norm(node, epsilon)
    output, name = node.outputs[0], node.outputs[0].name
    last = made[-1].outputs[0]
    last.shape, last.type = output.shape, output.type
    network.graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(output, last, replace_graph_outputs=True)
    network.graph.remove(node, safe=True)
    last.name = name
    network.changed()


def _instance_norm(node: ir.Node, epsilon: float) -> list[ir.Node]:
    attributes = [ir.AttrFloat32("epsilon", epsilon)]
    return [ir.Node("", "InstanceNormalization", list(node.inputs[:3]), attributes, name=node.name)]


def _written_out(network: Network, node: ir.Node, epsilon: float) -> list[ir.Node]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last axis of [1, outputs, inputs]."""
    base, made = node.outputs[0].name, list[ir.Node]()

    def constant(name: str, content: np.ndarray) -> ir.Value:
        unique = network.unique_name(f"{base}.{name}")
        return network.add_tensor(unique, content, Origin(unique, content.shape, made=True))

    def add(op: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        name = node.name if op == "Sub" else f"{node.name or base}/{op}.{len(made)}"
        given = [ir.AttrInt64(key, value) for key, value in attributes.items()]
        made.append(ir.Node("", op, list(inputs), given, name=name))
        made[-1].outputs[0].name = f"{base}.{len(made)}"
        return made[-1].outputs[0]

    def over_axes(op: str, x: ir.Value | None, axis: int, newest: int, **attributes: int) -> ir.Value:
        if network.opset >= newest:
            return add(op, x, constant(f"axes.{len(made)}", np.array([axis])), **attributes)
        value = add(op, x, **attributes)
        made[-1].attributes["axes"] = ir.AttrInt64s("axes", [axis])
        return value

    x, scale, bias = node.inputs[:3]
    centred = add("Sub", x, over_axes("ReduceMean", x, 2, 18, keepdims=1))
    variance = over_axes("ReduceMean", add("Mul", centred, centred), 2, 18, keepdims=1)
    dtype = np.float32 if x is None or x.name not in network.tensors else network.tensors[x.name].dtype
    deviation = add("Sqrt", add("Add", variance, constant("epsilon", np.array(epsilon, dtype))))
    scaled = add("Mul", add("Div", centred, deviation), over_axes("Unsqueeze", scale, 1, 13))
    add("Add", scaled, over_axes("Unsqueeze", bias, 1, 13))
    return made


def _is_one_sample_of_a_weight(network: Network, value: ir.Value | None) -> bool:
    if value is not None and value.name in network.tensors:
        return network.tensors[value.name].shape[0] == 1
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "Reshape":
        return False
    source, sizes = maker.inputs
    shape = None if sizes is None else network.tensors.get(sizes.name or "")
    return source is not None and source.name in network.tensors and shape is not None and shape.reshape(-1)[0] == 1
