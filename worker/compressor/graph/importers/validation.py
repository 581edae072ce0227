"""Is this ONNX file sound? The checker of the onnx package is no gate: it lets short tensors and bombs through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from worker.compressor.errors import ImportFailed

_OLDEST_OPSET = 7
_MOST_BYTES = (1 << 31) - 1
_MOST_ELEMENTS = 1 << 40
_QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "MatMulNBits", "QGemm", "QLinearAdd", "QLinearMul", "QAttention", "DynamicQuantizeMatMul",
}  # fmt: skip
_TRAINING = {"ai.onnx.training", "ai.onnx.preview.training"}
_RE_EXPORT = "Export the network again and upload the new file."


def check_file(path: Path) -> onnx.ModelProto:
    """The parsed file.

    Raises:
        ImportFailed: `malformed_model`, or `use_external_data` above protobuf's 2 GiB.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ImportFailed("the file is larger than 2 GiB, which ONNX files cannot be", code="use_external_data")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, ValueError) as error:
        raise ImportFailed("the file is not an ONNX model: it does not parse as protobuf", hint=_RE_EXPORT) from error
    if not model.graph.node and not model.graph.output:
        raise ImportFailed("the file holds no graph", hint=_RE_EXPORT)
    return model


def check_model(model: onnx.ModelProto) -> None:
    """Everything that makes a parsed model one that we can take.

    Raises:
        ImportFailed: with the code of the first thing that is wrong, and its name.
    """
    _check_versions(model)
    _check_ports(model.graph)
    for tensor in _tensors(model.graph):
        _check_tensor(tensor)
    _check_operators(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ImportFailed(f"the graph is not valid: {str(error).strip()[:300]}", hint=_RE_EXPORT) from error


def _check_versions(model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    if opset is None:
        raise ImportFailed("the file names no version of the standard operator set", hint=_RE_EXPORT)
    if not _OLDEST_OPSET <= opset <= newest or model.ir_version > onnx.IR_VERSION or model.ir_version < 3:
        raise ImportFailed(
            f"the file has opset {opset} and IR version {model.ir_version}; "
            f"opsets {_OLDEST_OPSET} to {newest} and IR versions 3 to {onnx.IR_VERSION} are taken",
            code="unsupported_version",
            hint="Export with an opset in that range.",
        )


def _check_ports(graph: onnx.GraphProto) -> None:
    owned = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in owned]
    if not inputs:
        raise ImportFailed("the graph has no inputs", code="no_inputs", hint=_RE_EXPORT)
    if not graph.output:
        raise ImportFailed("the graph has no outputs", code="no_outputs", hint=_RE_EXPORT)
    if graph.sparse_initializer:
        raise _unsupported("a sparse initializer")
    for value in [*inputs, *graph.output]:
        kind = value.type.WhichOneof("value")
        if kind not in ("tensor_type", None):
            raise _unsupported(f"the port '{value.name}' of kind {kind.removesuffix('_type')}")
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise _unsupported(f"strings in '{value.name}'")
        if value.type.tensor_type.elem_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
            raise ImportFailed(f"'{value.name}' holds complex numbers", code="unsupported_dtype")


def _check_operators(model: onnx.ModelProto) -> None:
    if any(entry.domain in _TRAINING for entry in model.opset_import) or model.training_info:
        raise _unsupported("training information")
    functions = {(function.domain, function.name): function for function in model.functions}
    _check_recursion(functions)
    domains = {entry.domain for entry in model.opset_import}
    for node in model.graph.node:
        name = node.name or (node.output[0] if node.output else node.op_type)
        if node.op_type in _QUANTISED:
            raise ImportFailed(
                f"node '{name}' ({node.op_type}) works on quantised numbers",
                code="already_quantised",
                hint="Upload the network as it was before quantisation.",
            )
        if (node.domain, node.op_type) in functions:
            raise _unsupported(f"the local function '{node.op_type}' (node '{name}')")
        standard = node.domain in ("", "ai.onnx")
        if not standard and (node.domain not in domains or not _is_known(node)):
            raise ImportFailed(
                f"node '{name}' uses the operator {node.domain}::{node.op_type}, which is not part of ONNX",
                code="unknown_operator",
                hint="Export with standard ONNX operators only.",
            )


def _is_known(node: onnx.NodeProto) -> bool:
    return bool(node.domain in ("ai.onnx.ml",) and onnx.defs.has(node.op_type, node.domain))


def _check_recursion(functions: dict[tuple[str, str], onnx.FunctionProto]) -> None:
    calls = {
        key: {(n.domain, n.op_type) for n in function.node if (n.domain, n.op_type) in functions}
        for key, function in functions.items()
    }
    while calls:
        leaves = [key for key, called in calls.items() if not called]
        if not leaves:
            raise ImportFailed("a local function calls itself", hint=_RE_EXPORT)
        for leaf in leaves:
            del calls[leaf]
        calls = {key: called - set(leaves) for key, called in calls.items()}


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(inner)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        _check_external(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise _unsupported(f"strings in '{tensor.name}'")
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > _MOST_ELEMENTS:
        raise _invalid(tensor, f"has the dimensions {list(tensor.dims)}")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise _invalid(tensor, f"has the unknown data type {tensor.data_type}") from error
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        packed = tensor.data_type in _PACKED
        wanted = (count * _PACKED[tensor.data_type] + 7) // 8 if packed else count * dtype.itemsize
        if len(tensor.raw_data) != wanted:
            raise _invalid(tensor, f"holds {len(tensor.raw_data)} bytes where its dimensions need {wanted}")
    else:
        held = max(
            len(getattr(tensor, kind))
            for kind in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        )
        if tensor.data_type not in _PACKED and held != count:
            raise _invalid(tensor, f"holds {held} elements where its dimensions need {count}")


#: Types with less than a byte per element, in bits.
_PACKED = {
    number: bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if (number := getattr(onnx.TensorProto, name, None)) is not None
}


def _check_external(tensor: onnx.TensorProto) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if (
        not location
        or location == "."
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in location
        or "*" in location
    ):
        raise ImportFailed(
            f"the tensor '{tensor.name}' lies outside the file's own folder",
            code="external_data_path",
            hint="Save the network as one file.",
        )
    for key in ("offset", "length"):
        digits = entries.get(key, "0")
        if not digits.isdecimal() or int(digits) > 1 << 40:
            raise ImportFailed(f"the tensor '{tensor.name}' has an impossible {key}", code="external_data_range")
    raise ImportFailed(
        f"the tensor '{tensor.name}' lies in '{location[:200]}', which was not uploaded",
        code="external_data_missing",
        hint="Save the network as one file: onnx.save(onnx.load(path), new_path).",
    )


def _unsupported(what: str) -> ImportFailed:
    return ImportFailed(
        f"the network uses {what}, which is not supported",
        code="unsupported_feature",
        hint="Export a network of plain tensors.",
    )


def _invalid(tensor: onnx.TensorProto, why: str) -> ImportFailed:
    return ImportFailed(f"the tensor '{tensor.name}' {why}", code="invalid_tensor", hint=_RE_EXPORT)
