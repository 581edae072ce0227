"""What a place for bytes guarantees. Everything is named by its sha256; what is there once never changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Blob:
    """Bytes that are stored for good: their digest in hex, and how many there are."""

    sha256: str
    size_bytes: int


class BlobWriter(Protocol):
    """Bytes on their way in, hashed as they pass. Nothing is visible before `commit`; calls come from one thread at a time."""

    @property
    def size_bytes(self) -> int:
        """How much was written so far."""

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes. Raises `InsufficientStorage` where the disk is full."""

    def reader(self) -> BinaryIO:
        """What was written so far, to look into before the commit; the caller closes it."""

    def commit(self) -> Blob:
        """Make the bytes visible and durable: when this returns, a power cut does not lose them."""

    def abort(self) -> None:
        """Forget the bytes. Does nothing after a commit or an abort."""


class Storage(Protocol):
    """A content-addressed store. Unknown digests raise `FileNotFoundError`."""

    def begin(self) -> BlobWriter:
        """Start to write a blob of unknown digest."""

    def put_file(self, path: Path) -> Blob:
        """Copy a file in, hashing it on the way; content that is there already is kept."""

    def open(self, sha256: str) -> BinaryIO:
        """The bytes, seekable, for reading."""

    def local_path(self, sha256: str) -> Path:
        """A path to link or copy from; never to write to."""

    def size(self, sha256: str) -> int:
        """How many bytes there are."""

    def is_intact(self, sha256: str) -> bool:
        """Whether the stored bytes still have their digest; reads them, unless they were read before and did not change."""

    def touch(self, sha256: str) -> bool:
        """Protect from `delete(older_than_seconds=…)` for that long; False where the blob is not there."""

    def delete(self, sha256: str, *, older_than_seconds: float = 0) -> bool:
        """Remove a blob unless it was written or touched lately; whether it was removed."""

    def digests(self, *, older_than_seconds: float = 0) -> Iterator[str]:
        """All blobs that were not written or touched lately, in no order."""

    def sweep(self, *, older_than_seconds: float) -> int:
        """Remove what writers that died left behind that long ago; how many files. Live writers are safe at any age."""

    def check(self) -> None:
        """Write and remove a probe; raises `OSError` or `AppError` where the storage does not take bytes."""
