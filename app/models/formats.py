"""Which kind of network a file holds, told from its first bytes, its zip index and its name. Nothing is unpickled or run.

What is certainly wrong is refused here; the rest is for inspection, in a process of its own.
"""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

from app.errors import Unprocessable

ONNX, TORCHSCRIPT, EXPORTED_PROGRAM = "onnx", "torchscript", "exported_program"
_MAX_PROTOBUF_BYTES = 2**31 - 1
_MAX_INDEX_BYTES = 64 << 20
# Field numbers of ModelProto that a file can begin with, as protobuf tags.
_ONNX_TAGS = {0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA}
_ACCEPTED = (
    "send an .onnx file (a .zip of it and its data files where it has any), a TorchScript archive written by "
    "torch.jit.save, or a .pt2 written by torch.export.save"
)


def tell_format(stream: BinaryIO, name: str) -> str:
    """`onnx`, `torchscript` or `exported_program`; raises `Unprocessable` with the code that inspection would give."""
    head = stream.read(16)
    if head.startswith(b"PK\x03\x04"):
        return _tell_archive(stream)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise Unprocessable("a pickle can run anything when it is opened", code="pickle_not_accepted", hint=_ACCEPTED)
    if _is_safetensors(head):
        raise Unprocessable(
            "a .safetensors file holds weights without the network they belong to",
            code="architecture_missing",
            hint=_ACCEPTED,
        )
    if head[0] not in _ONNX_TAGS:
        code = "malformed_model" if name.lower().endswith((".onnx", ".pt", ".pth", ".pt2")) else "unsupported_format"
        raise Unprocessable("neither ONNX nor TorchScript nor an exported program", code=code, hint=_ACCEPTED)
    if stream.seek(0, 2) > _MAX_PROTOBUF_BYTES:
        raise Unprocessable("one protobuf file cannot be over 2 GiB", code="use_external_data")
    return ONNX


def _tell_archive(stream: BinaryIO) -> str:
    names = _archive_names(stream)
    if names is None:
        return TORCHSCRIPT  # a broken index: inspection says what is wrong with it
    members = {name.partition("/")[2] for name in names}
    if any(m.startswith("code/") or m == "constants.pkl" for m in members):
        return TORCHSCRIPT
    if members & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in names:
        return EXPORTED_PROGRAM
    if "data.pkl" in members:
        raise Unprocessable("an archive of torch.save is a pickle", code="pickle_not_accepted", hint=_ACCEPTED)
    if any(name.lower().endswith(".onnx") for name in names):
        return ONNX  # with its data files
    return TORCHSCRIPT


def _archive_names(stream: BinaryIO) -> list[str] | None:
    """The names in a zip's index; None where there is no readable one, or one so large that only a child may read it."""
    try:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 65_557))
        tail = stream.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 16 or struct.unpack_from("<L", tail, at + 12)[0] > _MAX_INDEX_BYTES:
            return None
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError, struct.error):
        return None


def _is_safetensors(head: bytes) -> bool:
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32
