"""Takes a child's events and writes them in batches, about three times a second, fenced by the attempt."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.orm import Session, sessionmaker

from app.db.engine import is_unavailable
from app.jobs.events import append_event
from app.tables import JobRow, MetricRow
from worker.lease import Claim, Lease

FLUSH_SECONDS = 0.3
MAX_BUFFERED = 5_000
MAX_LOGS = 2_000
_log = logging.getLogger(__name__)

Event = dict[str, Any]


def parse_event(line: bytes) -> Event | None:
    """A line of a child as an event with only the fields that we know; None for anything else.

    A child has read somebody's file: what it says is checked like any other input.
    """
    try:
        plain = json.loads(line, parse_constant=lambda _: None)
        read = _READERS.get(plain["kind"])
        return read(plain) if read else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: Any, length: int) -> str:
    return str(value).replace("\x00", "")[:length]


def _progress(plain: Event) -> Event:
    progress = min(max(_number(plain["progress"]) or 0.0, 0.0), 1.0)
    eta = _number(plain.get("eta_seconds"))
    return {"kind": "progress", "stage": _text(plain["stage"], 64), "progress": progress, "eta_seconds": eta}


def _metric(plain: Event) -> Event:
    where = {"name": _text(plain["name"], 64), "stage": _text(plain["stage"], 64), "step": int(plain["step"])}
    return {"kind": "metric", **where, "value": _number(plain["value"])}


def _line(plain: Event) -> Event:
    level = "warning" if plain["kind"] == "warning" else _text(plain.get("level", "info"), 16)
    return {"kind": "log", "level": level, "message": _text(plain["message"], 2000)}


_READERS = {"progress": _progress, "metric": _metric, "log": _line, "warning": _line}


class Recorder:
    """Writes what it is given from a thread of its own; `close` writes the rest."""

    def __init__(self, lease: Lease, writes: sessionmaker[Session]) -> None:
        self._lease, self._claim, self._writes = lease, lease.claim, writes
        self._buffer: deque[Event] = deque(maxlen=MAX_BUFFERED)
        self._num_logs = 0
        self._flushing = threading.Lock()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"events-{self._claim.item_id}", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(30)
        self.flush()

    def take(self, event: Event) -> None:
        """Keep an event for the next batch. Logs beyond `MAX_LOGS` are dropped: a job's history stays readable."""
        if event["kind"] == "log":
            self._num_logs += 1
            if self._num_logs > MAX_LOGS:
                return
        self._buffer.append(event)

    def stage(self, stage: str, progress: float) -> None:
        """A stage of the worker's own."""
        self.take({"kind": "progress", "stage": stage, "progress": progress, "eta_seconds": None})

    def flush(self) -> None:
        """Write what there is; where the database is away it stays for the next time."""
        with self._flushing:
            batch = list(self._buffer)
            if not batch or self._lease.is_lost:
                return
            try:
                with self._writes.begin() as session:
                    self._lease.note(write_events(session, self._claim, batch))
            except Exception as error:
                if not is_unavailable(error):
                    raise
                _log.warning("events of %s wait for the database", self._claim.item_id)
                return
            for _ in batch:
                self._buffer.popleft()

    def _run(self) -> None:
        while not self._ends.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except Exception:
                _log.exception("events of %s could not be written", self._claim.item_id)
                self._buffer.clear()


def write_events(session: Session, claim: Claim, batch: list[Event]) -> bool | None:
    """Write events in this transaction; returns what a heartbeat does. Of each stage's progress only the last counts."""
    kept = [e for e, after in zip(batch, [*batch[1:], None], strict=True) if not _is_outdated(e, after)]
    progress = next((e for e in reversed(kept) if e["kind"] == "progress"), None)
    shown = {k: progress[k] for k in ("stage", "progress", "eta_seconds")} if progress else {"stage": JobRow.stage}
    changed = update(JobRow).where(*claim.holds()).values(**shown).returning(JobRow.cancel_requested)
    flag = session.scalar(changed)
    if flag is None:
        return None
    for event in kept:
        data = {key: value for key, value in event.items() if key != "kind"} | {"attempt": claim.attempt}
        append_event(session, claim.item_id, event["kind"], data)
    if metrics := [e for e in kept if e["kind"] == "metric"]:
        fields = ("name", "step", "stage", "value")
        owner = {"job_id": claim.item_id, "attempt": claim.attempt}
        session.execute(insert(MetricRow), [owner | {f: e[f] for f in fields} for e in metrics])
    return flag


def _is_outdated(event: Event, after: Event | None) -> bool:
    is_progress = event["kind"] == "progress" and after is not None and after["kind"] == "progress"
    return is_progress and after is not None and after["stage"] == event["stage"]
