"""A job's events. Their numbers count up within the job and are taken in the transaction that writes them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.tables import EventRow, JobRow, utc_now

KINDS = ("status", "progress", "metric", "log")


def append_event(session: Session, job_id: str, kind: str, data: dict[str, Any]) -> int:
    """Write one event in the caller's transaction and return its number.

    The UPDATE locks the job's row, so that numbers appear in the order of commits: who has read up to n misses nothing.
    Raises `LookupError` where the job is gone.
    """
    taken = (
        update(JobRow).where(JobRow.id == job_id).values(last_event=JobRow.last_event + 1).returning(JobRow.last_event)
    )
    number = session.execute(taken.execution_options(synchronize_session=False)).scalar_one_or_none()
    if number is None:
        raise LookupError(job_id)
    session.add(EventRow(job_id=job_id, id=number, kind=kind, data=data, at=utc_now()))
    session.flush()
    return number


def events_after(session: Session, job_id: str, after: int, limit: int) -> list[EventRow]:
    """Up to `limit` events with numbers above `after`, in order."""
    rows = select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id).limit(limit)
    return list(session.scalars(rows))
