"""A file as a whole request body: what `curl -T FILE URL/` sends."""

from __future__ import annotations

from starlette.requests import Request

from app.api.body_stream import check_declared_length, stream_body
from app.api.digests import content_digest
from app.api.forms import is_multipart
from app.api.staging import StagedFile, Staging
from app.errors import BadRequest, UnsupportedMedia


async def read_raw(request: Request, staging: Staging, name: str) -> StagedFile:
    """The body as one staged file. Everything that the headers alone can tell is refused before a byte is read."""
    if "content-range" in request.headers:
        # To store the part as if it were the whole would be a silent corruption (RFC 9110, 14.5).
        raise BadRequest(
            "a PUT with Content-Range would store a part as if it were the whole",
            code="partial_put_not_supported",
            hint="send the whole file again: curl -T FILE, without -C",
        )
    if is_multipart(request):
        raise UnsupportedMedia(
            "PUT takes the file itself as the body, not a form",
            hint="curl -T FILE URL/, or POST the form",
        )
    check_declared_length(request, staging.limit_bytes)
    file = await staging.begin(name, content_digest(request.headers.get("repr-digest")))
    async for chunk in stream_body(request, staging.limit_bytes):
        await file.feed(chunk)
    await file.finish()
    return file
