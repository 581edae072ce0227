"""Lists by page: the cursor names the last row that was given, so that inserts neither hide nor repeat a row."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, and_, or_

from app.errors import BadRequest

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000
_TAG_BYTES = 9

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page and the cursor of the next, None at the end."""

    data: list[T]
    next_cursor: str | None


@dataclass(frozen=True)
class PageRequest:
    """What a client asks for. `scope` names the list and its filters: a cursor is good for this list alone."""

    limit: int
    cursor: str | None
    scope: tuple[Any, ...]

    def after(self) -> list[Any] | None:
        """The key of the last row that was given; raises `BadRequest` (`invalid_cursor`)."""
        return None if self.cursor is None else decode_cursor(self.cursor, self.scope)

    def page(self, rows: Sequence[T], key: Callable[[T], list[Any]]) -> Page[T]:
        """The page of `rows`, which were fetched with `limit + 1`."""
        shown = list(rows[: self.limit])
        more = len(rows) > self.limit
        return Page(shown, encode_cursor(key(shown[-1]), self.scope) if more else None)


def newest_first(statement: Select[T], row: Any, request: PageRequest) -> Select[T]:
    """The statement for one page and one row more, by (created_at, id) downwards."""
    if (key := request.after()) is not None:
        at, last_id = _parse_time(key), str(key[1])
        statement = statement.where(or_(row.created_at < at, and_(row.created_at == at, row.id < last_id)))
    return statement.order_by(row.created_at.desc(), row.id.desc()).limit(request.limit + 1)


def created_key(row: Any) -> list[Any]:
    """The key of a row in a list that is newest first."""
    return [row.created_at.isoformat(), row.id]


def encode_cursor(key: list[Any], scope: tuple[Any, ...]) -> str:
    """An opaque text; the tag in it shows any change of the text or of the filters."""
    payload = json.dumps(key).encode()
    return base64.urlsafe_b64encode(_tag(payload, scope) + payload).decode().rstrip("=")


def decode_cursor(cursor: str, scope: tuple[Any, ...]) -> list[Any]:
    """The key in a cursor of ours; raises `BadRequest` (`invalid_cursor`) for any other text."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None
    tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
    if tag != _tag(payload, scope):
        raise _invalid()
    key: list[Any] = json.loads(payload)
    return key


def _tag(payload: bytes, scope: tuple[Any, ...]) -> bytes:
    return hashlib.blake2s(json.dumps(scope).encode() + b"\0" + payload, digest_size=_TAG_BYTES).digest()


def _parse_time(key: list[Any]) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(key[0])
    except (TypeError, ValueError):
        raise _invalid() from None


def _invalid() -> BadRequest:
    return BadRequest(
        "the cursor is not one of this list with these filters",
        code="invalid_cursor",
        hint="use next_cursor of the page before, with the same filters, or start without a cursor",
    )
