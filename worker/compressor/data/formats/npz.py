"""NPZ: a zip of NPY arrays.

Stored members are mapped from the file; deflated ones are streamed, and refused where they claim to unfold to more than
any real data set does (deflate reaches a ratio of 1,030: a megabyte can ask for a gigabyte).
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from worker.compressor.data.formats import FORMATS, DataFormat
from worker.compressor.data.npy import MAGIC, NpyHeader, read_header
from worker.compressor.data.stored import BLOCK_BYTES, StoredArray, check_name, map_bytes
from worker.compressor.errors import DataError

MAX_ENTRIES = 4096
# Blank images deflate 1,000 to 1: a ratio alone says nothing about a small array, nor a size about a dense one.
BOMB_RATIO = 100
BOMB_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
# All that zipfile was seen to raise on damaged archives.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, OverflowError
)  # fmt: skip
_HINT = "write the file with numpy.savez"


@dataclass(frozen=True)
class NpzArray(StoredArray):
    """One member of the zip; `data_offset` is where its values lie in the file, None where they are deflated."""

    path: Path
    member: str
    header_bytes: int
    data_offset: int | None

    def array(self) -> np.ndarray:
        """Mapped where stored, else inflated into memory (its size was checked)."""
        if self.data_offset is not None:
            return map_bytes(self.path, self.data_offset, self)
        flat = np.empty(self.num_elements, self.stored_dtype)
        at = 0
        for block in self.blocks():
            flat[at : at + len(block)] = block
            at += len(block)
        return flat.reshape(self.shape, order=self.order)

    def blocks(self) -> Iterator[np.ndarray]:
        """Flat blocks in storage order; the checksum is compared at the end."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                stream.read(self.header_bytes)
                left = self.size_bytes
                block_bytes = BLOCK_BYTES - BLOCK_BYTES % self.stored_dtype.itemsize
                while left:
                    blob = _fill(stream, min(block_bytes, left))
                    if not blob:
                        raise _truncated(self.name)
                    left -= len(blob)
                    yield np.frombuffer(blob, self.stored_dtype)
                stream.read(1)  # past the end, so that zipfile compares the checksum
        except _DAMAGE as error:
            raise DataError(
                f"the array {self.name!r} is damaged: its checksum or its compression is wrong", code="truncated"
            ) from error


@FORMATS.register
class Npz(DataFormat):
    """numpy.savez and numpy.savez_compressed."""

    name = "npz"
    help = "a zip of NPY arrays, as numpy.savez writes it"

    def open(self, path: Path) -> list[StoredArray]:
        """See `DataFormat.open`."""
        with path.open("rb") as file:
            start = file.read(8)
        if not start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            raise DataError(f"the file is not an NPZ archive: {_looks_like(start)}", code="wrong_format", hint=_HINT)
        try:
            with zipfile.ZipFile(path) as archive:
                return _members(path, archive)
        except _DAMAGE as error:
            raise DataError("the NPZ archive is cut short or damaged", code="truncated", hint=_HINT) from error


def _members(path: Path, archive: zipfile.ZipFile) -> list[StoredArray]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if not entries:
        raise DataError("the NPZ archive is empty", code="too_small", hint=_HINT)
    if len(entries) > MAX_ENTRIES:
        raise DataError(
            f"the NPZ archive has {len(entries)} entries; at most {MAX_ENTRIES} are read", code="archive_bomb"
        )
    if len({entry.filename for entry in entries}) < len(entries):
        raise DataError("the NPZ archive names an entry twice", code="wrong_format", hint=_HINT)
    _check_ratio(path, entries)
    return [_member(path, archive, entry) for entry in entries]


def _check_ratio(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    declared = sum(entry.file_size for entry in entries)
    # Entries that overlap in the file would each have a modest ratio of their own.
    if declared > BOMB_BYTES and declared > BOMB_RATIO * path.stat().st_size:
        raise _bomb(declared, path.stat().st_size)
    for entry in entries:
        if entry.file_size > BOMB_BYTES and entry.file_size > BOMB_RATIO * max(entry.compress_size, 1):
            raise _bomb(entry.file_size, entry.compress_size)


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> StoredArray:
    if not entry.filename.endswith(".npy"):
        raise DataError("the archive holds an entry that is not an NPY array", code="wrong_format", hint=_HINT)
    name = check_name(entry.filename.removesuffix(".npy"))
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"the array {name!r} is encrypted, or not deflated", code="wrong_format", hint=_HINT)
    try:
        with archive.open(entry) as stream:
            header = read_header(stream, name)
    except _DAMAGE as error:
        raise DataError(f"the array {name!r} is damaged", code="truncated") from error
    offset = _data_offset(path, entry, name) if entry.compress_type == zipfile.ZIP_STORED else None
    stored_at = None if offset is None else offset + header.size_bytes
    array = NpzArray(
        name, header.dtype.name, header.shape, header.dtype, header.fortran_order,
        path, entry.filename, header.size_bytes, stored_at,
    )  # fmt: skip
    _check_size(array, header, entry)
    return array


def _check_size(array: NpzArray, header: NpyHeader, entry: zipfile.ZipInfo) -> None:
    found = entry.file_size - header.size_bytes
    if found < array.size_bytes:
        raise _truncated(array.name)
    if found > array.size_bytes:
        raise DataError(f"the array {array.name!r} has {found - array.size_bytes} bytes more than its header declares")


def _data_offset(path: Path, entry: zipfile.ZipInfo, name: str) -> int:
    """Where a stored member's bytes begin: the local header repeats the name and may have another extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        blob = file.read(_LOCAL_HEADER.size)
    if len(blob) < _LOCAL_HEADER.size or blob[:4] != b"PK\x03\x04":
        raise _truncated(name)
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(blob)
    offset = int(entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
    if entry.compress_size != entry.file_size or offset + entry.file_size > path.stat().st_size:
        raise _truncated(name)
    return offset


def _fill(stream: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes, or what is left where that is less and the stream ends (then nothing)."""
    parts = []
    while size:
        part = stream.read(size)
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _looks_like(start: bytes) -> str:
    if start.startswith(MAGIC):
        return "it is a single NPY array"
    if start[:1] == b"\x80":
        return "it is a Python pickle, which is never opened"
    return "it is no zip"


def _bomb(declared: int, size: int) -> DataError:
    detail = f"the archive would unfold {size} bytes to {declared}"
    return DataError(detail, code="archive_bomb", hint="write it uncompressed, with numpy.savez")


def _truncated(name: str) -> DataError:
    return DataError(f"the array {name!r} has fewer bytes than its header declares", code="truncated")
