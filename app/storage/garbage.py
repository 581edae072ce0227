"""Removes bytes that no row refers to: rejected uploads, deleted models, attempts that lost their lease."""

from __future__ import annotations

import datetime as dt
import itertools

from sqlalchemy import delete, select, union_all
from sqlalchemy.orm import Session, sessionmaker

from app.storage.interface import Storage
from app.tables import ArtifactRow, DatasetRow, IdempotencyRow, ModelRow, utc_now

GRACE_SECONDS = 3600.0
"""Bytes come before their row, so what is younger than this is left alone."""
KEY_LIFETIME = dt.timedelta(hours=24)
SWEEP_AGE_SECONDS = 60.0
"""A writer takes its lock a moment after its file is there."""
_BATCH = 100


def collect_garbage(sessions: sessionmaker[Session], storage: Storage, *, grace_seconds: float = GRACE_SECONDS) -> int:
    """Delete unreferenced blobs, stale temporary files and idempotency keys of yesterday; how many blobs went.

    Safe beside uploads and workers: a blob that is written or touched again is young again, and storage looks at the age
    under the lock of its commit.
    """
    removed = 0
    digests = storage.digests(older_than_seconds=grace_seconds)
    while batch := list(itertools.islice(digests, _BATCH)):
        with sessions.begin() as session:
            kept = _referenced(session, batch)
        removed += sum(
            storage.delete(sha256, older_than_seconds=grace_seconds) for sha256 in batch if sha256 not in kept
        )
    storage.sweep(older_than_seconds=SWEEP_AGE_SECONDS)
    with sessions.begin() as session:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < utc_now() - KEY_LIFETIME))
    return removed


def _referenced(session: Session, digests: list[str]) -> set[str]:
    columns = (ModelRow.sha256, ModelRow.graph_sha256, DatasetRow.sha256, ArtifactRow.sha256)
    return set(session.scalars(union_all(*(select(column).where(column.in_(digests)) for column in columns))))
