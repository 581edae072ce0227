"""What onnxruntime takes although the format forbids it, put right.

1. Operators of the domain "ai.onnx", which is the standard's own.
2. Two nodes of one name, and a graph of none.
3. Nodes that stand before those that they read.
4. Initializers that IR 3 wants to be listed among the inputs.
5. Inputs that tell no shape: the signature says it.
6. Outputs that tell no type or shape, or one that cannot be: what can be inferred holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.importers.order import sort_nodes
from worker.compressor.graph.importers.stored import LEAST_BYTES, has_shape
from worker.compressor.graph.network import Network
from worker.compressor.graph.normalise.names import unique

_FIRST_IR_WITHOUT_LISTING = 4


def put_right(model: onnx.ModelProto, signature: Sequence[Mapping[str, Any]] | None) -> None:
    """Cases 1 to 5: change the parsed model in place where its meaning is plain, so that it can be checked.

    Raises:
        ImportFailed: `signature_needed` for an input without a shape that no row of the signature tells.
    """
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in with_inner(nodes):
            node.domain = "" if node.domain == "ai.onnx" else node.domain
    _name(model.graph)
    sort_nodes(model.graph)
    if model.ir_version < _FIRST_IR_WITHOUT_LISTING:
        _list_initializers(model.graph)
    _shape_inputs(model.graph, signature)


def with_inner(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from with_inner(graph.node)


def _name(graph: onnx.GraphProto) -> None:
    graph.name = graph.name or "graph"
    taken: set[str] = set()
    for node in graph.node:
        node.name = unique(node.name, taken) if node.name else ""


def _list_initializers(graph: onnx.GraphProto) -> None:
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _shape_inputs(graph: onnx.GraphProto, signature: Sequence[Mapping[str, Any]] | None) -> None:
    owned = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in owned]
    rows = {row["name"]: row for row in signature or [] if "shape" in row}
    if len(rows) == len(inputs) and not rows.keys() & {value.name for value in inputs}:
        rows = dict(zip((value.name for value in inputs), rows.values(), strict=True))
    for value in inputs:
        if value.type.WhichOneof("value") != "tensor_type" or has_shape(value):
            continue
        if value.name not in rows:
            raise ImportFailed(
                f"the input '{value.name}' has no shape in the file",
                code="signature_needed",
                hint="Give `inputs`: name, dtype and shape of each.",
            )
        shape = onnx.helper.make_tensor_type_proto(1, rows[value.name]["shape"]).tensor_type.shape
        value.type.tensor_type.shape.CopyFrom(shape)


def infer_outputs(network: Network) -> None:
    """Case 6, for a network that was tried: what cannot be inferred is of the type and the rank that was seen.

    Raises:
        ImportFailed: for an output that is not of the type that the file says.
    """
    facts = observe(network, network.sample_shapes)
    inferred = _inferred(network)
    for value in network.graph.outputs:
        name = value.name or ""
        seen = ir.DataType.from_numpy(np.dtype(facts.dtypes[name]))
        dtype, shape = inferred.get(name, (None, None))
        if value.dtype is not None and dtype is not None and value.dtype != dtype:
            raise ImportFailed(
                f"the output '{name}' is {value.dtype} by the file's word, and {dtype} by its operators",
                hint="Export the network again and upload the new file.",
            )
        value.dtype = value.dtype or dtype or seen
        if shape is not None and not (value.shape is not None and _agree(value.shape, shape)):
            value.shape = shape
        elif value.shape is None:
            value.shape = ir.Shape([None] * len(facts.shapes[name]))


def _inferred(network: Network) -> dict[str, tuple[ir.DataType | None, ir.Shape | None]]:
    """Type and shape of each output as they follow from the operators alone."""
    large = {name: array for name, array in network.tensors.items() if array.nbytes >= LEAST_BYTES}
    bare = network.to_proto(leave_out=large.keys())
    for name, array in large.items():
        kind = int(ir.DataType.from_numpy(array.dtype))
        bare.graph.initializer.append(onnx.TensorProto(name=name, dims=array.shape, data_type=kind))
        bare.graph.initializer[-1].data_location = onnx.TensorProto.EXTERNAL
    for value in bare.graph.output:
        value.ClearField("type")
    try:
        inferred = ir.serde.deserialize_graph(onnx.shape_inference.infer_shapes(bare).graph)
    except Exception:  # whatever is wrong there, the check before it is written says it
        return {}
    return {value.name or "": (value.dtype, value.shape) for value in inferred.outputs}


def _agree(told: ir.Shape, found: ir.Shape) -> bool:
    """Whether two shapes have the same rank, and the same sizes where both tell a number."""
    pairs = zip(told, found, strict=False)
    return len(told) == len(found) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int) and a > 0) for a, b in pairs
    )
