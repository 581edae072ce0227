"""The header of the NPY format, versions 1 to 3 (numpy.lib.format), read without numpy's own loader.

numpy's loader suggests `allow_pickle` to the caller and allocates what a header declares; this one does neither.
"""

from __future__ import annotations

import ast
import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from worker.compressor.data.stored import NUMERIC_KINDS, check_shape
from worker.compressor.errors import DataError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000


class Readable(Protocol):
    """Anything with `read(n)`."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class NpyHeader:
    """What precedes the values: their layout, and how many bytes the header itself takes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    size_bytes: int


def read_header(stream: Readable, name: str) -> NpyHeader:
    """Parse and check the header at the start of `stream`.

    Raises:
        DataError: `pickle_not_accepted` for object arrays, `wrong_format`, `truncated`, `invalid_array`.
    """
    start = _exactly(stream, 8, name)
    if start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise DataError(
            f"the entry {name!r} is not an NPY array", code="wrong_format", hint="write the file with numpy.savez"
        )
    width = 2 if start[6] == 1 else 4
    (length,) = struct.unpack("<H" if width == 2 else "<I", _exactly(stream, width, name))
    if length > MAX_HEADER_BYTES:
        raise DataError(f"the array {name!r} has a header of {length} bytes")
    described = _parse(_exactly(stream, length, name), name)
    dtype = _dtype(described["descr"], name)
    shape = described["shape"]
    check_shape(name, shape, dtype.itemsize)
    return NpyHeader(dtype, shape, described["fortran_order"], 8 + width + length)


def _exactly(stream: Readable, size: int, name: str) -> bytes:
    blob = stream.read(size)
    if len(blob) < size:
        raise DataError(f"the array {name!r} ends inside its header", code="truncated")
    return blob


def _parse(header: bytes, name: str) -> dict[str, Any]:
    try:
        described = ast.literal_eval(header.decode("utf-8").strip())
    except (ValueError, SyntaxError, UnicodeDecodeError, RecursionError, MemoryError):
        described = None
    if not isinstance(described, dict) or described.keys() != {"descr", "fortran_order", "shape"}:
        raise DataError(f"the array {name!r} has a header that is not one of NPY")
    shape = described["shape"]
    is_shape = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    if not is_shape or not isinstance(described["fortran_order"], bool):
        raise DataError(f"the array {name!r} has a header with an odd shape or order")
    return described


def _dtype(described: object, name: str) -> np.dtype[Any]:
    """The dtype of a numeric array; the text is matched before numpy sees it."""
    hint = "store plain numbers: float32, uint8, int64…"
    if not isinstance(described, str):
        raise DataError(f"the array {name!r} holds records, not numbers", hint=hint)
    if described.lstrip("<>|=").startswith("O"):
        detail = f"the array {name!r} holds pickled Python objects, which are never opened"
        raise DataError(detail, code="pickle_not_accepted", hint=hint)
    try:
        dtype = np.dtype(described) if len(described) <= 8 else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in NUMERIC_KINDS or dtype.itemsize > 8:
        raise DataError(f"the array {name!r} has the dtype {described[:16]!r}, which is not a plain number", hint=hint)
    return dtype
