"""An ONNX file opened without reading its weights: the graph is parsed, large tensors stay where they lie, mapped.

protobuf copies every tensor at least twice while it parses. So the file's fields are walked once (protobuf's wire format:
a tag is `field << 3 | kind`, kind 2 is a length and so many bytes); where a tensor's data is larger than a few kilobytes,
its place takes the data's place. What remains is small, and parsed by protobuf as ever. External data is found the same way.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from worker.compressor.errors import ImportFailed

#: Data below this is parsed with the graph: shapes, axes and the like have to be looked into.
LEAST_BYTES = 1 << 12
_MOST_GRAPH_BYTES = 256 << 20
_MOST_DEPTH = 64
_BLOCK_BYTES = 1 << 13
_RE_EXPORT = "Export the network again and upload the new file."
#: Which fields of a message are messages in which tensors lie.
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_FLOAT_DATA, _RAW_DATA = 4, 9


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a file below the bundle's folder, an offset and a length."""

    file: str
    offset: int
    length: int


class StoredModel:
    """A parsed graph whose large tensors are named by their place; `array` maps them."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._name = path.name
        self._token = secrets.token_hex(16)
        self._maps: dict[str, np.ndarray] = {}
        with path.open("rb", buffering=0) as file:
            graph = _Skimmer(file.fileno(), self._token).message(0, path.stat().st_size, "model", 0)
        try:
            self.proto = onnx.load_model_from_string(graph)
        except (DecodeError, ValueError) as error:
            raise _malformed("it does not parse as protobuf") from error
        for tensor in filter(self.is_own, tensors_of(self.proto)):  # the file may say DEFAULT behind the data
            tensor.data_location = onnx.TensorProto.EXTERNAL

    def place(self, tensor: onnx.TensorProto) -> Place | None:
        """Where the tensor's data lies, None where it is in the graph.

        Raises:
            ImportFailed: `external_data_range` for numbers that are none.
        """
        if not is_elsewhere(tensor):
            return None
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location.startswith(self._token) and len(tensor.external_data) != 3:
            raise _malformed(f"the tensor '{tensor.name}' holds its data twice")
        offset, length = (_number(tensor, key, entries.get(key)) for key in ("offset", "length"))
        if length is None:
            length = num_bytes(tensor)
        return Place(self._name if location == self._token else location, offset or 0, length)

    def is_own(self, tensor: onnx.TensorProto) -> bool:
        """Whether the data lies in the ONNX file itself, so that its place is ours and not the file's word."""
        return any(entry.key == "location" and entry.value == self._token for entry in tensor.external_data)

    def size(self, file: str) -> int:
        """Bytes of a data file.

        Raises:
            ImportFailed: `external_data_missing`.
        """
        return len(self._mapped(file))

    def array(self, place: Place, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> np.ndarray:
        """The values that lie there, mapped read-only; read where they lie misaligned. Their range must have been checked."""
        if place.offset % dtype.itemsize:
            raw = np.fromfile(self.folder / place.file, np.uint8, place.length, offset=place.offset)
        else:
            raw = self._mapped(place.file)[place.offset : place.offset + place.length]
        return raw.view(dtype).reshape(shape)

    def as_model(self) -> ir.Model:
        """The model as `onnx_ir`, every tensor with its values."""
        model = ir.from_proto(self.proto)
        for value in model.graph.initializers.values():
            value.const_value = self._read(value.const_value)
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            for node in ir.traversal.RecursiveGraphIterator(graph):
                self._read_attributes(node)
        return model

    def _read_attributes(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, self._read(attribute.value))
            graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
            for graph in attribute.value if attribute.type == ir.AttributeType.GRAPHS else graphs:
                for value in graph.initializers.values():
                    value.const_value = self._read(value.const_value)

    def _read(self, tensor: Any) -> Any:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        file = str(tensor.location)
        size = tensor.nbytes if tensor.length is None else tensor.length
        place = Place(self._name if file == self._token else file, tensor.offset or 0, size)
        shape = tuple(tensor.shape.numpy())
        return ir.tensor(self.array(place, tensor.dtype.numpy(), shape), dtype=tensor.dtype, name=tensor.name)

    def _mapped(self, file: str) -> np.ndarray:
        if file not in self._maps:
            path = self.folder / file
            if not path.is_file():
                raise ImportFailed(
                    f"the weights lie in '{file[:200]}', which was not uploaded",
                    code="external_data_missing",
                    hint="Send a .zip of the .onnx file and its data files, or save the network as one file.",
                )
            empty = not path.stat().st_size
            self._maps[file] = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        return self._maps[file]


def check_graph(model: onnx.ModelProto, *, full_check: bool) -> None:
    """Run the checker of the onnx package on a model whose large tensors lie elsewhere.

    It wants to see as many bytes as each of them needs, so a file full of holes, which takes no room, stands for the data.
    Outputs that tell no shape are not looked at: runtimes do not need it.

    Raises:
        Exception: what the checker and shape inference raise.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in [value for value in copy.graph.output if not has_shape(value)]:
        copy.graph.output.remove(value)
    with tempfile.TemporaryDirectory() as folder:
        longest = 1
        for tensor in tensors_of(copy):
            if is_elsewhere(tensor):
                tensor.ClearField("external_data")
                tensor.external_data.add(key="location", value="data")
                longest = max(longest, num_bytes(tensor))
        with (Path(folder) / "data").open("wb") as file:
            file.truncate(longest)
        path = Path(folder) / "model.onnx"
        path.write_bytes(copy.SerializeToString())
        onnx.checker.check_model(str(path), full_check=full_check)


def has_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether a port tells its type and its number of axes, or is no tensor."""
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.HasField("shape"))


def is_elsewhere(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data is not in the graph."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL or bool(tensor.external_data)


def num_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's dimensions need."""
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and attributes, subgraphs and local functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors
        for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from _graph_tensors(inner)


class _Skimmer:
    """Copies a message's bytes but for large tensor data, which becomes an entry of `external_data`."""

    def __init__(self, file: int, token: str) -> None:
        self._file = file
        self._token = token
        self._copied = 0
        self._block, self._block_at = b"", 0

    def message(self, start: int, end: int, kind: str, depth: int) -> bytes:
        """The bytes of the message that lies there."""
        if depth > _MOST_DEPTH:
            raise _malformed("its graphs are nested too deep")
        parts, at, done = [], start, start
        while at < end:
            begin = at
            tag, at = self._varint(at, end)
            field, wire = tag >> 3, tag & 7
            if wire != 2:
                at = self._skip(wire, at, end)
                continue
            length, body = self._varint(at, end)
            at = body + length
            if at > end:
                raise _malformed("it is shorter than it says")
            if length < LEAST_BYTES:
                continue
            inner = _INNER.get(kind, {}).get(field)
            if inner is not None:
                made = self.message(body, at, inner, depth + 1)
                parts += [self._copy(done, begin), varint(tag), varint(len(made)), made]
            elif kind == "tensor" and field in (_FLOAT_DATA, _RAW_DATA):
                parts += [self._copy(done, begin), self._entry(body, length)]
            else:
                continue
            done = at
        if at != end:
            raise _malformed("a field ends beyond its message")
        return b"".join([*parts, self._copy(done, end)])

    def _copy(self, start: int, end: int) -> bytes:
        self._copied += end - start
        if self._copied > _MOST_GRAPH_BYTES:
            raise _malformed(f"its graph takes more than {_MOST_GRAPH_BYTES >> 20} MiB without the weights")
        data = os.pread(self._file, end - start, start)
        if len(data) != end - start:
            raise _malformed("it is shorter than it says")
        return data

    def _entry(self, offset: int, length: int) -> bytes:
        tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", self._token), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return bytes(tensor.SerializeToString())

    def _byte(self, at: int) -> int:
        if not 0 <= at - self._block_at < len(self._block):
            self._block, self._block_at = os.pread(self._file, _BLOCK_BYTES, at), at
        if not self._block:
            raise _malformed("it is shorter than it says")
        return self._block[at - self._block_at]

    def _skip(self, wire: int, at: int, end: int) -> int:
        if wire == 0:
            return self._varint(at, end)[1]
        if wire in (1, 5):
            return at + (8 if wire == 1 else 4)
        raise _malformed("it does not parse as protobuf")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self._byte(at)
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise _malformed("it does not parse as protobuf")


def varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _number(tensor: onnx.TensorProto, key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or int(text[:20]) > 1 << 50:
        raise ImportFailed(
            f"the tensor '{tensor.name}' has an impossible {key}", code="external_data_range", hint=_RE_EXPORT
        )
    return int(text)


def _malformed(why: str) -> ImportFailed:
    return ImportFailed(f"the file is not an ONNX model: {why}", hint=_RE_EXPORT)
