"""ONNX out: the user's own graph, only narrower."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import AddInitializersToInputsPass

from worker.compressor.errors import ExportError
from worker.compressor.graph.importers.stored import LEAST_BYTES, check_graph, varint
from worker.compressor.graph.network import Network

#: Since this IR version an initializer need not be listed among the inputs.
_FIRST_IR_WITHOUT_LISTING = 4
MOST_BYTES = (1 << 31) - 1
_MOST_HEADER_BYTES = 1 << 12
#: Field numbers of ModelProto, GraphProto and TensorProto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


def write_onnx(network: Network, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
    """Write the network with the user's names, opset, IR version, metadata, free axes and dtypes.

    Copies of one uploaded tensor that are still equal are written as one. The file passes `onnx.checker` with
    `full_check`. Weights go from memory to the file without a copy.

    Raises:
        ExportError: if it does not, or would be larger than `most_bytes` (what one protobuf file can hold).
    """
    merged = _merged(network)
    if merged.model.ir_version < _FIRST_IR_WITHOUT_LISTING:
        _fill(merged)
        AddInitializersToInputsPass()(merged.model)
    large = {
        name: array for name, array in merged.tensors.items() if array.nbytes >= LEAST_BYTES and array.dtype.kind != "i"
    }
    proto = merged.to_proto(leave_out=large.keys())
    headers = {name: _header(name, array) for name, array in large.items()}
    _check(proto, headers.values())
    total = proto.ByteSize() + sum(array.nbytes + _MOST_HEADER_BYTES for array in large.values())
    if total > most_bytes:
        raise ExportError(
            f"the network takes {total} bytes, more than one ONNX file can hold",
            hint="Ask for a smaller target, or for TorchScript.",
            error_class="user",
        )
    _write(proto, [(headers[name], array) for name, array in large.items()], path)


def _header(name: str, array: np.ndarray) -> onnx.TensorProto:
    """A tensor without its data."""
    return onnx.TensorProto(name=name, dims=array.shape, data_type=int(ir.DataType.from_numpy(array.dtype)))


def _check(proto: onnx.ModelProto, headers: Iterable[onnx.TensorProto]) -> None:
    """The graph must be valid, with the tensors that are not in it yet."""
    count = len(proto.graph.initializer)
    for header in headers:
        proto.graph.initializer.append(header)
        proto.graph.initializer[-1].data_location = onnx.TensorProto.EXTERNAL
    try:
        check_graph(proto, full_check=True)
    except Exception as error:  # the checker and shape inference have errors of their own kinds
        raise ExportError(f"the graph to be written is not valid ONNX: {str(error)[:300]}") from error
    del proto.graph.initializer[count:]


def _write(proto: onnx.ModelProto, tensors: list[tuple[onnx.TensorProto, np.ndarray]], path: Path) -> None:
    """Field by field: in protobuf's format a message is its fields in any order, so tensors can follow the rest."""
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = []
    for header, array in tensors:
        head = header.SerializeToString() + _field(_RAW_DATA, array.nbytes)
        heads.append(_field(_INITIALIZER, len(head) + array.nbytes) + head)
    size = len(graph) + sum(len(head) + array.nbytes for head, (_, array) in zip(heads, tensors, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _field(_GRAPH, size) + graph)
        for head, (_, array) in zip(heads, tensors, strict=True):
            file.write(head)
            np.ascontiguousarray(array).tofile(file)


def _field(number: int, length: int) -> bytes:
    """The tag of a field with a length, and that length."""
    return bytes([number << 3 | 2]) + varint(length)


def _merged(network: Network) -> Network:
    result = network.copy()
    initializers = result.graph.initializers
    for name, first in result.tied().items():
        if name != first:
            ir.convenience.replace_all_uses_with(initializers[name], initializers[first])
    result.changed()
    result.remove_unused()
    return result


def _fill(network: Network) -> None:
    for name, value in network.graph.initializers.items():
        value.const_value = ir.tensor(network.tensors[name], name=name)
        value.shape = ir.Shape(network.tensors[name].shape)
