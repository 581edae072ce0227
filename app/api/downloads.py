"""Stored bytes over HTTP: strong validators, one range, HEAD (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.digests import repr_digest
from app.api.filenames import content_disposition
from app.errors import AppError, NotFound, RangeNotSatisfiable
from app.logging import get_logger
from app.storage.interface import Storage

_CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"(\d{0,20})-(\d{0,20})")
_MEDIA_TYPES = {"json": "application/json", "onnx": "application/octet-stream", "svg": "image/svg+xml"}
_log = get_logger("app.downloads")


class ArtifactCorrupt(AppError):
    """The stored bytes no longer have the digest under which they were stored."""

    status, code = 500, "artifact_corrupt"


class PreconditionFailed(AppError):
    """`If-Match` names another version."""

    status, code = 412, "precondition_failed"


@dataclass(frozen=True)
class Download:
    """A file as a client sees it."""

    sha256: str
    name: str
    format: str


async def download(
    request: Request, storage: Storage, file: Download, headers: dict[str, str] | None = None
) -> Response:
    """The answer to GET or HEAD of a stored file: 200, 206, 304, or an error (412, 416, `artifact_corrupt`)."""
    size = await asyncio.to_thread(_verified_size, storage, file.sha256)
    etag = f'"{file.sha256}"'
    out = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(file.sha256),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": content_disposition(file.name),
        "Content-Type": _MEDIA_TYPES.get(file.format, "application/octet-stream"),
        **(headers or {}),
    }
    if (wanted := request.headers.get("if-match")) is not None and not _names(wanted, etag, is_weak=False):
        raise PreconditionFailed("the file is another one now")
    if (known := request.headers.get("if-none-match")) is not None and _names(known, etag, is_weak=True):
        return Response(status_code=304, headers={k: v for k, v in out.items() if k != "Content-Type"})
    asked = _asked_range(request, etag)
    span = _resolve(asked, size) if asked else None
    first, last = span or (0, size - 1)
    out["Content-Length"] = str(last - first + 1)
    if span:
        out["Content-Range"] = f"bytes {first}-{last}/{size}"
    if request.method == "HEAD":
        return Response(status_code=200, headers=out)
    stream = await asyncio.to_thread(storage.open, file.sha256)
    return _FileResponse(stream, first, last - first + 1, 206 if span else 200, out)


class _FileResponse(Response):
    """Sends `length` bytes from `first` on, a chunk in memory at a time; the socket's pace is the disk's."""

    def __init__(self, stream: BinaryIO, first: int, length: int, status: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status, headers=headers)
        self._stream, self._first, self._length = stream, first, length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await asyncio.to_thread(self._stream.seek, self._first)
            left = self._length
            while left > 0:
                chunk = await asyncio.to_thread(self._stream.read, min(left, _CHUNK_BYTES))
                if not chunk:
                    raise OSError("a stored file is shorter than it was a moment ago")
                left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
        finally:
            self._stream.close()


def _verified_size(storage: Storage, sha256: str) -> int:
    try:
        if storage.is_intact(sha256):
            return storage.size(sha256)
    except FileNotFoundError:
        raise NotFound("the file is gone") from None
    _log.error("artifact_corrupt", sha256=sha256)
    raise ArtifactCorrupt("the stored file was damaged", hint="make it again; tell whoever runs this service")


def _names(header: str, etag: str, *, is_weak: bool) -> bool:
    if header.strip() == "*":
        return True
    given = [part.strip() for part in header.split(",")]
    return etag in given or (is_weak and f"W/{etag}" in given)


def _asked_range(request: Request, etag: str) -> str | None:
    """The one range in bytes that is asked for; None where the whole is to be sent (other units, several ranges)."""
    unit, equals, ranges = request.headers.get("range", "").partition("=")
    if request.method != "GET" or not equals or unit.strip().lower() != "bytes" or "," in ranges:
        return None
    condition = request.headers.get("if-range")
    return ranges.strip() if condition is None or condition.strip() == etag else None


def _resolve(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None for what is no range at all, which is to be ignored."""
    match = _RANGE.fullmatch(asked)
    if not match or asked == "-":
        return None
    if not match[1]:
        first, last = max(0, size - int(match[2])), size - 1
        is_there = int(match[2]) > 0 and size > 0
    else:
        first, last = int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)
        is_there = first <= last
    if not is_there:
        raise RangeNotSatisfiable(f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return first, last
