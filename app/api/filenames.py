"""Names that clients give to files: shown, never used as a path."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

MAX_NAME_CHARS = 255
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._ +=@-]")


def display_name(given: str, default: str) -> str:
    """The base name without controls, surrogates and invisible marks (those that reverse the reading direction too)."""
    base = given.replace("\\", "/").rstrip("/").rpartition("/")[2]
    shown = "".join(
        c for c in base if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    ).strip()
    if shown in ("", ".", ".."):
        return default
    if len(shown) <= MAX_NAME_CHARS:
        return shown
    stem, dot, suffix = shown.rpartition(".")
    tail = dot + suffix if stem and len(suffix) <= 16 else ""
    return shown[: MAX_NAME_CHARS - len(tail)] + tail


def content_disposition(name: str) -> str:
    """`attachment` with a plain name for old clients and the exact one as `filename*` (RFC 6266, RFC 8187)."""
    plain = _NOT_PLAIN.sub("_", name)
    exact = f"; filename*=UTF-8''{quote(name, safe='')}" if plain != name else ""
    return f'attachment; filename="{plain}"{exact}'
