"""Opaque, prefixed identifiers that sort by time: 48 bits of milliseconds, then 80 random bits."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"(mdl|dst|job|art|req|upl)_[0-9a-hjkmnp-tv-z]{26}")


def new_id(prefix: str) -> str:
    """A fresh identifier such as `job_01k9…`, 26 characters after the prefix (the ULID layout)."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` could be one of ours; anything else never reaches the database."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None
