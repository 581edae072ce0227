"""Files on their way in: straight to storage, hashed as they pass, invisible until the request is known to be sound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from app.api.body_stream import too_large
from app.api.digests import check_digest
from app.errors import Unprocessable
from app.storage.interface import BlobWriter, Storage

_BUFFER_BYTES = 1 << 20


@dataclass
class StagedFile:
    """One file, as far as it has arrived. `name` is what the client called it."""

    name: str
    writer: BlobWriter
    limit_bytes: int
    expected_sha256: str | None = None
    size_bytes: int = 0
    _buffer: bytearray = field(default_factory=bytearray)

    async def feed(self, data: bytes | memoryview) -> None:
        """Add bytes; raises `TooLarge` past the limit and `InsufficientStorage` where the disk is full."""
        self.size_bytes += len(data)
        if self.size_bytes > self.limit_bytes:
            raise too_large(self.limit_bytes, "file_too_large")
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            await self._flush()

    async def finish(self) -> None:
        """All bytes are there: refuses an empty file and a digest that does not fit."""
        await self._flush()
        if self.size_bytes == 0:
            raise Unprocessable(
                "the file is empty", code="empty_file", hint="with curl, is there an @ before the path?"
            )
        if self.expected_sha256:
            check_digest(self.expected_sha256, self.sha256, "the digest header")

    @property
    def sha256(self) -> str:
        """Digest in hex of what has arrived."""
        return self.writer.sha256

    async def commit(self) -> None:
        """Make the bytes visible and durable."""
        await asyncio.to_thread(self.writer.commit)

    async def look(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(reader, …)` in a thread, on the bytes that have arrived."""

        def run() -> Any:
            with self.writer.reader() as reader:
                return function(reader, *args)

        return await asyncio.to_thread(run)

    async def _flush(self) -> None:
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            await asyncio.to_thread(self.writer.write, data)


class Staging:
    """The files of one request; whatever was not committed when it ends is removed."""

    def __init__(self, storage: Storage, limit_bytes: int) -> None:
        self._storage = storage
        self.limit_bytes = limit_bytes
        self._files: list[StagedFile] = []

    async def begin(self, name: str, expected_sha256: str | None = None) -> StagedFile:
        """A file that starts to arrive."""
        file = StagedFile(name, await asyncio.to_thread(self._storage.begin), self.limit_bytes, expected_sha256)
        self._files.append(file)
        return file

    async def commit(self) -> None:
        """Make all files visible and durable; their rows come after this."""
        for file in self._files:
            await file.commit()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.writer.abort()  # without a thread: a request that is being cancelled must not wait here
