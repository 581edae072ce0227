"""A request's body, chunk by chunk, with an end to patience."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from app.api.digests import check_digest, content_digest
from app.errors import AppError, TooLarge

WINDOW_SECONDS = 60.0
WINDOW_BYTES = 64 * 1024


class RequestTimeout(AppError):
    """The client stopped sending, or sends so slowly that it may be an attack."""

    status, code = 408, "request_timeout"


def check_declared_length(request: Request, limit_bytes: int, *, code: str = "file_too_large") -> None:
    """Refuse by the header alone, so that a client that waits for `100 Continue` never sends the body."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes, code)


def too_large(limit_bytes: int, code: str) -> TooLarge:
    """The error for a body over the limit."""
    return TooLarge(f"at most {limit_bytes} bytes are taken", code=code, headers={"Connection": "close"})


async def stream_body(request: Request, limit_bytes: int, *, code: str = "file_too_large") -> AsyncIterator[bytes]:
    """The chunks of the body; raises `TooLarge` past the limit and `RequestTimeout` below 1 KiB per second.

    A `Content-Digest` is checked at the end; until then nothing that was read may be acted on.
    """
    check_declared_length(request, limit_bytes, code=code)
    expected = content_digest(request.headers.get("content-digest"))
    digest = hashlib.sha256() if expected else None
    clock = asyncio.get_running_loop().time
    total, window_bytes, deadline = 0, 0, clock() + WINDOW_SECONDS
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise RequestTimeout("the body comes too slowly", headers={"Connection": "close"}) from None
        if chunk is None:
            break
        total += len(chunk)
        if total > limit_bytes:
            raise too_large(limit_bytes, code)
        window_bytes += len(chunk)
        if window_bytes >= WINDOW_BYTES:
            window_bytes, deadline = 0, clock() + WINDOW_SECONDS
        if digest:
            digest.update(chunk)
        if chunk:
            yield chunk
    if expected and digest:
        check_digest(expected, digest.hexdigest(), "Content-Digest")
