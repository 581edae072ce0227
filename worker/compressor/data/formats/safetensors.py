"""Safetensors: eight bytes of length, a JSON header, then the tensors' bytes, which are mapped."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from worker.compressor.data.formats import FORMATS, DataFormat
from worker.compressor.data.stored import BLOCK_BYTES, StoredArray, check_name, check_shape, map_bytes
from worker.compressor.errors import DataError

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 4096
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_HINT = "write the file with safetensors.numpy.save_file"


@dataclass(frozen=True)
class SafetensorsArray(StoredArray):
    """One tensor of the file; bfloat16 is stored as its 16 bits and widened to float32 when read."""

    path: Path
    offset: int

    def array(self) -> np.ndarray:
        """Mapped; bfloat16 is widened in memory."""
        stored = map_bytes(self.path, self.offset, self)
        return _widened(stored) if self.dtype == "bfloat16" else stored

    def blocks(self) -> Iterator[np.ndarray]:
        """Flat blocks in storage order."""
        flat = map_bytes(self.path, self.offset, self).reshape(-1)
        step = BLOCK_BYTES // self.stored_dtype.itemsize
        for at in range(0, len(flat), step):
            block = flat[at : at + step]
            yield _widened(block) if self.dtype == "bfloat16" else block


@FORMATS.register
class Safetensors(DataFormat):
    """The format of huggingface/safetensors."""

    name = "safetensors"
    help = "named tensors, as safetensors.numpy.save_file writes them"

    def open(self, path: Path) -> list[StoredArray]:
        """See `DataFormat.open`."""
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise DataError("the file is not in the safetensors format", code="wrong_format", hint=_HINT)
            if 8 + length > size:
                raise DataError("the file ends inside its header", code="truncated", hint=_HINT)
            header = _parse(file.read(length))
        header.pop("__metadata__", None)
        if not header:
            raise DataError("the file holds no tensor", code="too_small", hint=_HINT)
        if len(header) > MAX_TENSORS:
            raise DataError(
                f"the file holds {len(header)} tensors; at most {MAX_TENSORS} are read", code="archive_bomb"
            )
        return [_tensor(path, check_name(name), entry, 8 + length, size) for name, entry in header.items()]


def _parse(blob: bytes) -> dict[str, Any]:
    try:
        header = json.loads(blob)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DataError("the file's header is not that of a safetensors file", code="wrong_format", hint=_HINT)
    return header


def _tensor(path: Path, name: str, entry: object, start: int, size: int) -> StoredArray:
    if not isinstance(entry, dict):
        raise DataError(f"the tensor {name!r} is not described", code="wrong_format")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if code == "BF16":
        dtype, stored = "bfloat16", np.dtype("uint16")
    elif isinstance(code, str) and code in _DTYPES:
        dtype, stored = _DTYPES[code], np.dtype(_DTYPES[code])
    else:
        raise DataError(f"the tensor {name!r} has a dtype that is not a plain number")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise DataError(f"the tensor {name!r} has an odd shape or place")
    check_shape(name, tuple(shape), stored.itemsize)
    array = SafetensorsArray(name, dtype, tuple(shape), stored.newbyteorder("<"), False, path, start + offsets[0])
    if offsets[1] - offsets[0] != array.size_bytes:
        raise DataError(f"the tensor {name!r} takes other bytes than its shape needs")
    if offsets[0] < 0 or start + offsets[1] > size:
        raise DataError(f"the tensor {name!r} has fewer bytes than its shape needs", code="truncated")
    return array


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
