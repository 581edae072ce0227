"""`Idempotency-Key` on POST: the key, the answer and what the request made are written in one transaction.

After draft-ietf-httpapi-idempotency-key-header. An answer is kept for a day. A request that fails keeps no key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from app.errors import BadRequest, Conflict, Unprocessable
from app.storage.garbage import KEY_LIFETIME
from app.tables import TENANT, IdempotencyRow, utc_now

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class Answer:
    """What a POST answers, in a form that can be stored. `wake` are the ids that a worker is to be told of."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    wake: tuple[str, ...] = ()
    is_replay: bool = False


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key for one route."""

    key: str
    route: str

    def run(self, session: Session, request: Any, produce: Callable[[], Answer]) -> Answer:
        """`produce()` once per key; the stored answer to the same `request`, any time after.

        `request` is plain data that tells requests apart. Raises `Unprocessable` (`idempotency_key_reused`) where the key
        came with another one. A second process with the same key waits for the first one's transaction.
        """
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        session.execute(delete(IdempotencyRow).where(self._mine, IdempotencyRow.created_at < utc_now() - KEY_LIFETIME))
        if self._take(session, fingerprint):
            answer = produce()
            stored = {"status": answer.status, "headers": answer.headers, "body": answer.body}
            session.execute(update(IdempotencyRow).where(self._mine).values(**stored))
            return answer
        row = session.scalars(select(IdempotencyRow).where(self._mine)).one()
        if row.fingerprint != fingerprint:
            raise Unprocessable(
                "this Idempotency-Key came with another request before",
                code="idempotency_key_reused",
                hint="a new request needs a new key",
            )
        assert row.status is not None, "the answer is written in the transaction that takes the key"
        return replay(Answer(row.status, row.body or {}, row.headers or {}))

    @property
    def _mine(self) -> Any:
        row = IdempotencyRow
        return (row.tenant == TENANT) & (row.key == self.key) & (row.route == self.route)

    def _take(self, session: Session, fingerprint: str) -> bool:
        is_postgresql = session.get_bind().dialect.name == "postgresql"
        statement = (postgresql_insert if is_postgresql else sqlite_insert)(IdempotencyRow).values(
            tenant=TENANT, key=self.key, route=self.route, fingerprint=fingerprint, created_at=utc_now()
        )
        taken = session.execute(statement.on_conflict_do_nothing().returning(IdempotencyRow.key))
        return taken.first() is not None


def replay(answer: Answer) -> Answer:
    """The stored answer, marked as such."""
    return replace(answer, is_replay=True, headers=answer.headers | {"Idempotency-Replayed": "true"})


def read_key(header: str | None, route: str) -> IdempotencyKey | None:
    """The key of a request; raises `BadRequest` (`invalid_idempotency_key`) unless it is 1 to 255 printable characters."""
    if header is None:
        return None
    if not _KEY.fullmatch(header):
        raise BadRequest("an Idempotency-Key has 1 to 255 printable ASCII characters", code="invalid_idempotency_key")
    return IdempotencyKey(header, route)


class KeysInFlight:
    """The keys that this process is busy with, so that a second request is told at once and does not upload twice."""

    def __init__(self) -> None:
        self._keys: set[IdempotencyKey] = set()

    @contextlib.contextmanager
    def hold(self, key: IdempotencyKey | None) -> Iterator[None]:
        """Raises `Conflict` (`idempotency_key_in_use`) while another request with this key is on its way."""
        if key is None:
            yield
            return
        if key in self._keys:
            raise Conflict(
                "a request with this Idempotency-Key is on its way",
                code="idempotency_key_in_use",
                hint="wait for it, then send this one again to get its answer",
                headers={"Retry-After": "1"},
            )
        self._keys.add(key)
        try:
            yield
        finally:
            self._keys.discard(key)
