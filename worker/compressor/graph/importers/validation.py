"""Is this ONNX file sound? The checker of the onnx package is no gate: it lets short tensors and bombs through."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath

import onnx

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.leniency import with_inner
from worker.compressor.graph.importers.stored import StoredModel, check_graph, is_elsewhere, num_bytes, tensors_of

_OLDEST_OPSET = 7
_MOST_BYTES = (1 << 31) - 1
_MOST_ELEMENTS = 1 << 40
#: Operators on quantised numbers, of the standard and of onnxruntime's own domain; all QLinear… and QOrdered… besides.
_QUANTISED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulInteger16", "MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "QGemm", "QAttention", "QEmbedLayerNormalization",
    "QMoE", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "GatherBlockQuantized", "QuantizeBFP", "DequantizeBFP",
    "QuantizeWithOrder", "DequantizeWithOrder",
}  # fmt: skip
_QUANTISED_FAMILIES = ("QLinear", "QOrdered")
_ONNXRUNTIME = "com.microsoft"
_TRAINING = {"ai.onnx.training", "ai.onnx.preview.training"}
_RE_EXPORT = "Export the network again and upload the new file."


def open_file(path: Path) -> StoredModel:
    """The parsed graph of a file, its large tensors mapped.

    Raises:
        ImportFailed: `malformed_model`, or `use_external_data` above protobuf's 2 GiB.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ImportFailed(
            "the file is larger than 2 GiB, which ONNX files cannot be",
            code="use_external_data",
            hint="Save it with external data, and send a .zip of the .onnx file and its data files.",
        )
    stored = StoredModel(path)
    if not stored.proto.graph.node and not stored.proto.graph.output:
        raise ImportFailed("the file holds no graph", hint=_RE_EXPORT)
    return stored


def check_model(model: onnx.ModelProto, stored: StoredModel | None = None) -> None:
    """Everything that makes a parsed model one that we can take; `stored` says where its large tensors lie.

    Raises:
        ImportFailed: with the code of the first thing that is wrong, and its name.
    """
    _check_versions(model)
    _check_ports(model.graph)
    for tensor in tensors_of(model):
        _check_tensor(tensor, stored)
    if stored is not None:
        _check_overlaps(stored)
    _check_operators(model)
    try:
        check_graph(model, full_check=False)
    except Exception as error:  # on damaged files the checker also fails to tell what is wrong
        raise ImportFailed(f"the graph is not valid: {str(error).strip()[:300]}", hint=_RE_EXPORT) from error


def _check_versions(model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    holders = [model.opset_import, *(function.opset_import for function in model.functions)]
    opsets = [entry.version for imports in holders for entry in imports if entry.domain in ("", "ai.onnx")]
    if not opsets:
        raise ImportFailed("the file names no version of the standard operator set", hint=_RE_EXPORT)
    opset = opsets[0]
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
    if model.training_info:
        raise _unsupported("training information")
    standard = {_plain(entry.domain): entry.version for entry in model.opset_import}
    functions = {(f.domain, f.name) for f in model.functions if not onnx.defs.has(f.name, f.domain)}
    for place, nodes, imports in [
        ("", model.graph.node, model.opset_import),
        *((f" in the local function '{f.name}'", f.node, f.opset_import) for f in model.functions),
    ]:
        versions = {_plain(entry.domain): entry.version for entry in imports}
        for node in with_inner(nodes):
            _check_operator(node, place, versions.keys(), functions)
            _check_version(node, place, versions, standard)
    _check_recursion(model)


def _check_operator(
    node: onnx.NodeProto, place: str, domains: Collection[str], functions: Collection[tuple[str, str]]
) -> None:
    if (node.domain, node.op_type) in functions:
        return
    name = node.name or next(iter(node.output), node.op_type)
    if node.domain in _TRAINING:  # a file may name the domain without using it, as onnxruntime's own writer does
        raise _unsupported(f"the training operator {node.op_type} in node '{name}'{place}")
    if node.op_type in _QUANTISED or node.op_type.startswith(_QUANTISED_FAMILIES):
        raise ImportFailed(
            f"node '{name}' ({node.op_type}){place} works on quantised numbers",
            code="already_quantised",
            hint="Upload the network as it was before quantisation.",
        )
    standard = node.domain in ("", "ai.onnx")
    if not standard and (node.domain not in domains or not _is_known(node)):
        raise ImportFailed(
            f"node '{name}'{place} uses the operator {node.domain}::{node.op_type}, which is not part of ONNX",
            code="unknown_operator",
            hint="Upload the network as it was before onnxruntime's optimiser fused its operators."
            if node.domain.startswith(_ONNXRUNTIME)
            else "Export with standard ONNX operators only.",
        )


def _check_version(
    node: onnx.NodeProto, place: str, versions: Mapping[str, int], model_versions: Mapping[str, int]
) -> None:
    """A function may import another operator set than the model, where that changes nothing."""
    domain = _plain(node.domain)
    version = versions.get(domain, 0)
    other = model_versions.get(domain, version)
    if version != other and _since(node, version) != _since(node, other):
        raise ImportFailed(
            f"node '{node.name or node.op_type}'{place} is {node.op_type} of opset {version}, the model of opset {other}",
            code="unsupported_version",
            hint="Export with one opset, or without local functions.",
        )


def _since(node: onnx.NodeProto, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, _plain(node.domain)).since_version)
    except onnx.defs.SchemaError:
        return 0


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _is_known(node: onnx.NodeProto) -> bool:
    return bool(node.domain in ("ai.onnx.ml",) and onnx.defs.has(node.op_type, node.domain))


def _check_recursion(model: onnx.ModelProto) -> None:
    calls: dict[tuple[str, ...], set[tuple[str, ...]]] = {
        (function.domain, function.name, function.overload): {
            (node.domain, node.op_type, node.overload) for node in with_inner(function.node)
        }
        for function in model.functions
    }
    while calls:
        leaves = [key for key, called in calls.items() if not called & calls.keys()]
        if not leaves:
            raise ImportFailed("a local function calls itself", hint=_RE_EXPORT)
        for leaf in leaves:
            del calls[leaf]


def _check_tensor(tensor: onnx.TensorProto, stored: StoredModel | None) -> None:
    is_external = is_elsewhere(tensor)
    if is_external and (stored is None or not stored.is_own(tensor)):
        _check_location(tensor)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise _unsupported(f"strings in '{tensor.name}'")
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > _MOST_ELEMENTS:
        raise _invalid(tensor, f"has the dimensions {list(tensor.dims)}")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise _invalid(tensor, f"has the unknown data type {tensor.data_type}") from error
    count = math.prod(tensor.dims)
    if is_external:
        _check_range(tensor, stored)
    elif tensor.HasField("raw_data"):
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


def external_files(stored: StoredModel) -> set[str]:
    """The data files that tensors lie in, as paths below the ONNX file's folder.

    Raises:
        ImportFailed: `external_data_path` where one leads out of it.
    """
    found = set()
    for tensor in tensors_of(stored.proto):
        place = stored.place(tensor)
        if place is not None and not stored.is_own(tensor):
            _check_location(tensor)
            found.add(place.file)
    return found


def _check_location(tensor: onnx.TensorProto) -> None:
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    path = PurePosixPath(location)
    is_plain = location.isprintable() and "\\" not in location and "*" not in location and len(location) <= 1024
    if not is_plain or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ImportFailed(
            f"the tensor '{tensor.name}' lies outside the file's own folder",
            code="external_data_path",
            hint="Save the network as one file, or with its data files beside it.",
        )


def _check_range(tensor: onnx.TensorProto, stored: StoredModel | None) -> None:
    """The bytes that a tensor points to must be there, and be as many as it needs."""
    assert stored is not None
    place = stored.place(tensor)
    assert place is not None
    if tensor.data_type in _PACKED:
        raise _invalid(tensor, "is of a type that holds several numbers in a byte")
    if place.length != num_bytes(tensor):
        raise _invalid(tensor, f"holds {place.length} bytes where its dimensions need {num_bytes(tensor)}")
    if place.offset + place.length > stored.size(place.file):
        raise ImportFailed(
            f"the tensor '{tensor.name}' needs bytes {place.offset} to {place.offset + place.length} of "
            f"'{place.file[:200]}', which has {stored.size(place.file)}",
            code="external_data_range",
            hint="Was the data file sent whole? Save the network again and upload the new files.",
        )


def _check_overlaps(stored: StoredModel) -> None:
    """Two tensors may share all of their bytes (weights that are tied), but not some of them."""
    places: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in tensors_of(stored.proto):
        place = stored.place(tensor)
        if place is not None and place.length and not stored.is_own(tensor):
            places.setdefault(place.file, []).append((place.offset, place.offset + place.length, tensor.name))
    for file, rows in places.items():
        rows.sort()
        for (start, end, name), (next_start, next_end, other) in pairwise(rows):
            if next_start < end and (next_start, next_end) != (start, end):
                raise ImportFailed(
                    f"the tensors '{name}' and '{other}' share some of their bytes in '{file[:200]}'",
                    code="external_data_range",
                    hint=_RE_EXPORT,
                )


def _unsupported(what: str) -> ImportFailed:
    return ImportFailed(
        f"the network uses {what}, which is not supported",
        code="unsupported_feature",
        hint="Export a network of plain tensors.",
    )


def _invalid(tensor: onnx.TensorProto, why: str) -> ImportFailed:
    return ImportFailed(f"the tensor '{tensor.name}' {why}", code="invalid_tensor", hint=_RE_EXPORT)
