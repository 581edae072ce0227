"""Finds what nobody works on any more: dead leases, messages that got lost, scratch folders and bytes without a row.

A thread of every worker. All it writes are conditional UPDATEs, so any number of reapers may run beside each other.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import shutil
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Select, select, union_all
from sqlalchemy.orm import Session

from app.db.engine import is_unavailable
from app.jobs.states import TERMINAL
from app.queue import INSPECTIONS, QUEUES, queue_of
from app.storage.garbage import collect_garbage
from app.tables import DatasetRow, JobRow, ModelRow, utc_now
from worker.ending import release
from worker.folder import read_name
from worker.lease import QUEUED, RUNNING, TABLES, Claim, is_runnable, table_of
from worker.node import Node

PERIOD_SECONDS = 5.0
DEAD_SECONDS = 30.0
UNCLAIMED_SECONDS = 8.0
_GARBAGE_SECONDS = 300.0
_RESENT_AT_ONCE = 100
_CACHE_SECONDS = 30 * 86_400.0
_log = logging.getLogger(__name__)


@dataclass
class _Sighting:
    """What a running row looked like, and for how many of our own seconds it has looked like that."""

    attempt: int
    heartbeat: int
    still_seconds: float = 0.0


class Observer:
    """Tells dead leases by heartbeat counters that stand still, on this process's own monotonic clock.

    Host and database times are never compared: with jumping clocks that frees live jobs.
    """

    def __init__(self, dead_seconds: float = DEAD_SECONDS) -> None:
        self._dead_seconds = dead_seconds
        self._seen: dict[str, _Sighting] = {}
        self._looked_at: float | None = None

    def look(self, rows: list[tuple[str, int, int]], now: float) -> list[Claim]:
        """Take in `(id, attempt, heartbeat)` of all running rows; the attempts that are dead."""
        # A reaper that was frozen itself saw nothing meanwhile: two periods are all that one look may count.
        passed = min(now - self._looked_at, 2 * PERIOD_SECONDS) if self._looked_at is not None else 0.0
        self._looked_at = now
        seen = {}
        for item_id, attempt, heartbeat in rows:
            old = self._seen.get(item_id)
            is_still = old is not None and (old.attempt, old.heartbeat) == (attempt, heartbeat)
            still = old.still_seconds + passed if old is not None and is_still else 0.0
            seen[item_id] = _Sighting(attempt, heartbeat, still)
        self._seen = seen
        return [Claim(i, s.attempt) for i, s in seen.items() if s.still_seconds >= self._dead_seconds]


class Reaper:
    """Looks every five seconds. `free_workers` names workers that are known to be dead; None means all of `queue`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._observer = Observer()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._swept_at = time.monotonic() - _GARBAGE_SECONDS + random.uniform(20, 60)  # noqa: S311

    def start(self) -> None:
        """Begin to look; the first time at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._ends.set()

    def free(self, workers: list[str] | None) -> None:
        """Give back what dead workers held, without waiting for their leases; None: all rows of this queue."""
        tables = [table for prefix, table in TABLES.items() if queue_of(f"{prefix}_") == self._node.queue]
        with self._node.reads.begin() as session:
            held = [
                Claim(item_id, attempt)
                for table in tables
                for item_id, attempt, worker in session.execute(
                    select(table.id, table.attempt, table.worker).where(table.status == RUNNING)
                )
                if workers is None or worker in workers
            ]
        for claim in held:
            self._free(claim)

    def look(self, *, unclaimed_seconds: float = UNCLAIMED_SECONDS) -> None:
        """One round: dead leases, then messages."""
        with self._node.reads.begin() as session:
            dead = self._observer.look(_running(session), time.monotonic())
            unclaimed = _unclaimed(session, unclaimed_seconds)
        for claim in dead:
            self._free(claim)
        for item_id in _missing(self._node, unclaimed):
            self._node.send(item_id)

    def sweep(self) -> None:
        """Remove scratch folders of attempts that are over, and bytes that no row refers to."""
        sweep_folders(self._node)
        if self._node.queue == INSPECTIONS:
            collect_garbage(self._node.writes, self._node.storage)

    def _free(self, claim: Claim) -> None:
        with self._node.writes.begin() as session:
            status = release(session, claim, "worker_lost")
        if status is None:
            return
        _log.warning("attempt %d of %s was lost with its worker; now %s", claim.attempt, claim.item_id, status)
        if status == "queued":
            self._node.send(claim.item_id)
        sweep_folders(self._node, claim.item_id)

    def _run(self) -> None:
        unclaimed_seconds = 0.0  # what was queued before this start may have lost its message with the last one
        while True:
            try:
                self.look(unclaimed_seconds=unclaimed_seconds)
                unclaimed_seconds = UNCLAIMED_SECONDS
                if time.monotonic() - self._swept_at > _GARBAGE_SECONDS:
                    self._swept_at = time.monotonic()
                    self.sweep()
            except Exception as error:
                if is_unavailable(error):
                    _log.warning("the reaper waits for the database")
                else:
                    _log.exception("the reaper failed")
            if self._ends.wait(PERIOD_SECONDS):
                return


def _running(session: Session) -> list[tuple[str, int, int]]:
    parts = [
        select(table.id, table.attempt, table.heartbeat).where(table.status == RUNNING) for table in TABLES.values()
    ]
    return [(row[0], row[1], row[2]) for row in session.execute(union_all(*parts))]


def _unclaimed(session: Session, seconds: float) -> list[tuple[str, dt.datetime | None]]:
    """Queued rows that could run: unsent, or sent so long ago. The oldest messages first."""
    before = utc_now() - dt.timedelta(seconds=seconds)
    rows: list[tuple[str, dt.datetime | None]] = []
    for table in TABLES.values():
        late = (table.sent_at.is_(None)) | (table.sent_at <= before)
        found: Select[str, dt.datetime | None] = select(table.id, table.sent_at).where(table.status == QUEUED, late)
        if table is JobRow:
            found = found.where(is_runnable())
        rows += [(row[0], row[1]) for row in session.execute(found.order_by(table.sent_at, table.id).limit(1000))]
    return rows


def _missing(node: Node, unclaimed: list[tuple[str, dt.datetime | None]]) -> list[str]:
    """Which of these have no message. Unsent ones; and of the sent ones as many as the queue is short of.

    A row that waits behind a long job has its message still; sending it again every few seconds would fill the broker.
    Queues are first in, first out, so that the messages that are gone are those of the rows sent first.
    """
    unsent = [item_id for item_id, sent_at in unclaimed if sent_at is None]
    missing = unsent[:_RESENT_AT_ONCE]
    for queue in QUEUES:
        sent = [item_id for item_id, sent_at in unclaimed if sent_at is not None and queue_of(item_id) == queue]
        if sent and (num_waiting := node.publisher.num_waiting(queue)) is not None:
            missing += sent[: max(0, min(len(sent) - num_waiting, _RESENT_AT_ONCE))]
    return missing


def sweep_folders(node: Node, item_id: str | None = None) -> None:
    """Remove the scratch folders (of one item, or all) whose attempt is not the running one, and old cached figures."""
    for path in node.settings.work_dir.glob(f"{item_id or ''}*"):
        name = read_name(path)
        if name is not None and not _is_in_use(node, *name):
            shutil.rmtree(path, ignore_errors=True)
    for path in node.settings.data_dir.resolve().glob("cache/baseline-*"):
        if time.time() - path.stat().st_mtime > _CACHE_SECONDS:
            path.unlink(missing_ok=True)


def _is_in_use(node: Node, item_id: str, attempt: int | None) -> bool:
    table: type[JobRow] | type[ModelRow] | type[DatasetRow] = table_of(item_id)
    with node.reads.begin() as session:
        row = session.execute(select(table.status, table.attempt).where(table.id == item_id)).one_or_none()
    if row is None:
        return False
    if attempt is None:
        return row.status not in TERMINAL
    return row.status == "running" and row.attempt == attempt
