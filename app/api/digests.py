"""`Content-Digest` and `Repr-Digest` (RFC 9530): sha-256 is checked, other algorithms are ignored."""

from __future__ import annotations

import base64
import binascii
import re

from app.errors import BadRequest, Unprocessable

_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)\s*=\s*:([A-Za-z0-9+/=]*):\s*")


def content_digest(header: str | None) -> str | None:
    """The sha-256 in hex that a digest header promises; None without one. Raises `BadRequest` (`invalid_digest`)."""
    if header is None:
        return None
    found: str | None = None
    for member in header.split(","):
        match = _MEMBER.fullmatch(member)
        if not match:
            raise _malformed()
        if match[1] == "sha-256":
            found = _as_hex(match[2])
    return found


def check_digest(expected: str, found: str, header: str) -> None:
    """Raises `Unprocessable` (`digest_mismatch`) where the bytes are not those that were promised."""
    if expected != found:
        raise Unprocessable(
            f"the bytes that arrived do not have the sha-256 that {header} promises",
            code="digest_mismatch",
            hint="the file was changed on its way, or the digest is of another file: send it again",
        )


def repr_digest(sha256: str) -> str:
    """The header's value for a digest in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def _as_hex(text: str) -> str:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise _malformed() from None
    if len(raw) != 32:
        raise _malformed()
    return raw.hex()


def _malformed() -> BadRequest:
    return BadRequest(
        "a digest header reads sha-256=:<base64 of 32 bytes>:",
        code="invalid_digest",
        hint="see RFC 9530, or leave it out",
    )
