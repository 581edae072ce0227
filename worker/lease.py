"""Who works on a row: claim, heartbeat, hand back, and the fence that keeps everybody else from writing.

Every write of an attempt says `WHERE id = ? AND attempt = ? AND status = 'running'`. No row hit means "not yours any more".
The statuses are written as literals: as bound parameters a generic plan would scan the table instead of the partial index.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, insert, literal_column, select, update
from sqlalchemy.orm import Session, aliased, sessionmaker

from app.db.engine import is_unavailable
from app.jobs.events import append_event
from app.tables import AttemptRow, DatasetRow, JobRow, ModelRow, utc_now

LeasedTable = type[JobRow] | type[ModelRow] | type[DatasetRow]
TABLES: dict[str, LeasedTable] = {"job": JobRow, "mdl": ModelRow, "dst": DatasetRow}

# A write lock held for 15 s still lets a beat through within the 20 s.
BEAT_SECONDS = 4.0
CANCEL_CHECK_SECONDS = 1.0
SELF_KILL_SECONDS = 20.0

QUEUED: ColumnElement[str] = literal_column("'queued'")
RUNNING: ColumnElement[str] = literal_column("'running'")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """One attempt at one row; `attempt` is the fencing token."""

    item_id: str
    attempt: int

    @property
    def table(self) -> LeasedTable:
        """Where the row lives, by the prefix of its id."""
        return table_of(self.item_id)

    @property
    def is_job(self) -> bool:
        """A job, not an upload that is inspected."""
        return self.table is JobRow

    def holds(self) -> tuple[ColumnElement[bool], ...]:
        """The condition of every write of this attempt."""
        table = self.table
        return table.id == self.item_id, table.attempt == self.attempt, table.status == RUNNING


def table_of(item_id: str) -> LeasedTable:
    """The table of an id; KeyError for an id that is none of ours."""
    return TABLES[item_id.split("_", 1)[0]]


def claim(session: Session, item_id: str, worker: str) -> Claim | None:
    """Take a queued row for `worker` with one conditional UPDATE; None where there is nothing to take.

    A job whose model or data set is still being inspected is not there to be taken.
    """
    table = table_of(item_id)
    conditions: list[ColumnElement[bool]] = [table.id == item_id, table.status == QUEUED]
    if table is JobRow:
        conditions.append(is_runnable())
    taken = {
        "status": "running",
        "attempt": table.attempt + 1,
        "heartbeat": table.heartbeat + 1,
        "worker": worker[:128],
        "started_at": func.coalesce(table.started_at, utc_now()),
    }
    attempt = session.scalar(update(table).where(*conditions).values(**taken).returning(table.attempt))
    if attempt is None:
        return None
    if table is JobRow:
        session.execute(insert(AttemptRow).values(job_id=item_id, attempt=attempt, worker=worker[:128]))
        append_event(session, item_id, "status", {"status": "running", "attempt": attempt})
    return Claim(item_id, attempt)


def is_runnable() -> ColumnElement[bool]:
    """Of a job: neither its model nor its data set is still being inspected."""
    model, dataset = aliased(ModelRow), aliased(DatasetRow)
    inspecting = (QUEUED, RUNNING)
    waits_for_model = select(model.id).where(model.id == JobRow.model_id, model.status.in_(inspecting)).exists()
    waits_for_data = select(dataset.id).where(dataset.id == JobRow.dataset_id, dataset.status.in_(inspecting)).exists()
    return ~waits_for_model & ~waits_for_data


def beat(session: Session, held: Claim) -> bool | None:
    """Raise the row's counter; whether a cancel was asked for, None where the row is not ours any more."""
    table = held.table
    changed = update(table).where(*held.holds()).values(heartbeat=table.heartbeat + 1)
    return session.scalar(changed.returning(table.cancel_requested))


def is_cancelled(session: Session, held: Claim) -> bool | None:
    """As `beat`, but only reads."""
    return session.scalar(select(held.table.cancel_requested).where(*held.holds()))


class Lease:
    """Keeps a claim alive from a thread of its own, and learns of its loss and of a cancel.

    `on_beat` is called after each beat that got through: it is relayed to the child's dead-man switch.
    """

    def __init__(
        self, claim: Claim, writes: sessionmaker[Session], reads: sessionmaker[Session], on_beat: Callable[[], None]
    ) -> None:
        self.claim = claim
        self.is_lost = False
        self.is_cancelled = False
        self._writes, self._reads, self._on_beat = writes, reads, on_beat
        self._beat_at = time.monotonic()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{claim.item_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()

    @property
    def is_overdue(self) -> bool:
        """No beat got through for so long that the reaper may soon give the row to somebody else."""
        return time.monotonic() - self._beat_at > SELF_KILL_SECONDS

    def note(self, flag: bool | None) -> None:
        """Take in what a fenced write of this attempt returned: the cancel flag, or None for "not yours"."""
        if flag is None:
            self.is_lost = True
        elif flag:
            self.is_cancelled = True

    def _run(self) -> None:
        while not self._ends.wait(CANCEL_CHECK_SECONDS) and not self.is_lost:
            try:
                if time.monotonic() - self._beat_at >= BEAT_SECONDS:
                    self._beat()
                else:
                    with self._reads.begin() as session:
                        self.note(is_cancelled(session, self.claim))
            except Exception as error:
                if not is_unavailable(error):
                    _log.exception("the heartbeat of %s failed", self.claim.item_id)
                    self.is_lost = True
                else:
                    _log.warning("no heartbeat for %s got through: %s", self.claim.item_id, _first_line(error))

    def _beat(self) -> None:
        began = time.monotonic()
        with self._writes.begin() as session:
            self.note(beat(session, self.claim))
        if not self.is_lost:
            # Counted from before the write: the reaper may have seen it that early.
            self._beat_at = began
            self._on_beat()


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]


def lost_attempts(session: Session, job_id: str) -> int:
    """How often this job was lost to a death that was not its own doing."""
    lost = select(func.count()).select_from(AttemptRow).where(AttemptRow.job_id == job_id, AttemptRow.outcome.in_(LOST))
    return session.scalar(lost) or 0


LOST = ("worker_lost", "child_killed")
"""Outcomes of an attempt that count towards `MAX_LOST`; an attempt that was handed back at SIGTERM does not."""

Values = dict[str, Any]
