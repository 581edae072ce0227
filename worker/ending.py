"""The transactions in which an attempt gives up its row: for good, or back to the queue. All are fenced by the attempt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.errors import stored_error
from app.ids import new_id
from app.jobs.events import append_event
from app.tables import ArtifactRow, AttemptRow, JobRow, utc_now
from worker.lease import QUEUED, Claim, lost_attempts, table_of

MAX_LOST = 3
_HINT = (
    "try again; if it happens again, the worker may be short of memory: use a smaller batch_size or a larger machine"
)


@dataclass(frozen=True)
class Kept:
    """A file of the attempt that is in storage already."""

    name: str
    kind: str
    format: str
    sha256: str
    size_bytes: int


@dataclass
class End:
    """How an attempt ends a row. `values` are further columns; `outcome` goes to the attempt's own row."""

    status: str
    outcome: str
    error: dict[str, Any] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Kept] = field(default_factory=list)
    exit_code: int | None = None


def finish(session: Session, claim: Claim, end: End) -> bool:
    """Write everything that ends the row in this transaction; False (and nothing written) where the row is not ours.

    A cancel that was accepted before this wins: only the status `cancelled` ends a row that was asked to cancel.
    """
    table = claim.table
    conditions = claim.holds()
    if claim.is_job and end.status != "cancelled":
        conditions = (*conditions, table.cancel_requested.is_(False))
    values = {"status": end.status, "finished_at": utc_now(), "worker": None, "error": end.error, **end.values}
    if claim.is_job:
        values["eta_seconds"] = None
    ended = session.scalar(update(table).where(*conditions).values(**values).returning(table.id))
    if ended is None:
        return False
    if claim.is_job:
        _end_job(session, claim, end)
    return True


def _end_job(session: Session, claim: Claim, end: End) -> None:
    job_id = claim.item_id
    if end.artifacts:
        rows = [{"id": new_id("art"), "job_id": job_id, **vars(kept)} for kept in end.artifacts]
        session.execute(insert(ArtifactRow), rows)
    _close_attempt(session, claim, end.outcome, end.exit_code)
    append_event(session, job_id, "status", {"status": end.status, "attempt": claim.attempt})


def release(session: Session, claim: Claim, outcome: str, exit_code: int | None = None) -> str | None:
    """Give a row up that did not end: the status that it has then, None where it was not ours.

    It goes back to `queued`, unless a cancel was asked for or it was lost `MAX_LOST` times.
    """
    table = claim.table
    row = session.execute(
        select(table.cancel_requested, table.attempt).where(*claim.holds()).with_for_update()
    ).one_or_none()
    if row is None:
        return None
    if claim.is_job:
        _close_attempt(session, claim, outcome, exit_code)
    num_lost = lost_attempts(session, claim.item_id) if claim.is_job else row.attempt
    if claim.is_job and row.cancel_requested:
        return _finished(session, claim, End("cancelled", outcome, exit_code=exit_code))
    if outcome != "handed_back" and num_lost >= MAX_LOST:
        detail = f"the process that worked on this was lost {num_lost} times"
        error = stored_error("worker_lost", detail, error_class="transient", hint=_HINT)
        status = "failed" if claim.is_job else "rejected"
        return _finished(session, claim, End(status, outcome, error, exit_code=exit_code))
    back: dict[str, Any] = {"status": "queued", "worker": None, "sent_at": None}
    if claim.is_job:
        back |= {"stage": None, "eta_seconds": None}
    session.execute(update(table).where(*claim.holds()).values(**back))
    if claim.is_job:
        append_event(session, claim.item_id, "status", {"status": "queued", "attempt": claim.attempt})
    return "queued"


def _finished(session: Session, claim: Claim, end: End) -> str | None:
    return end.status if finish(session, claim, end) else None


def _close_attempt(session: Session, claim: Claim, outcome: str, exit_code: int | None) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id == claim.item_id, AttemptRow.attempt == claim.attempt)
        .values(ended_at=utc_now(), outcome=outcome, exit_code=exit_code)
    )


def jobs_waiting_for(session: Session, upload_id: str) -> list[str]:
    """The queued jobs that use this model or data set."""
    column = JobRow.model_id if upload_id.startswith("mdl_") else JobRow.dataset_id
    return list(session.scalars(select(JobRow.id).where(column == upload_id, JobRow.status == QUEUED)))


def mark_sent(session: Session, item_id: str) -> None:
    """Remember that a message for this row went out, if it is still queued."""
    table = table_of(item_id)
    session.execute(update(table).where(table.id == item_id, table.status == QUEUED).values(sent_at=utc_now()))
