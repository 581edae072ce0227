"""One attempt, from its claim to its end."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.db.engine import is_unavailable
from app.errors import AppError, InsufficientStorage, stored_error
from app.tables import ModelRow
from worker.child import Assignment
from worker.children import RETURN_MEMORY, Child, ExecChild, clean_environment
from worker.ending import End, Kept, finish, jobs_waiting_for, release
from worker.folder import WorkFolder, make_inner
from worker.lease import Claim, Lease, claim
from worker.node import Node
from worker.outcome import (
    Verdict,
    end_of_job,
    end_of_upload,
    error_of,
    keep,
    listed_files,
    needs_another_try,
    read_outcome,
)
from worker.preparation import INSPECTION_SECONDS, NotRunnable, Task, fill_conversion, fill_folder, read_task
from worker.recorder import Recorder, parse_event
from worker.supervisor import Ending, Limits, memory_limit, supervise

T = TypeVar("T")
_log = logging.getLogger(__name__)

_SECONDS_WITHOUT_DATABASE = 300.0
_ACCELERATOR_START_SECONDS = 43_200.0
_ADDRESS_SPACE_SLACK = 4 << 30


def run_item(node: Node, item_id: str) -> None:
    """Work on a row if it is there to be taken. A message that comes twice or late finds nothing, and ends here."""
    if node.stopping.is_set():
        return
    with node.writes.begin() as session:
        taken = claim(session, item_id, node.name)
    if taken is None:
        _log.info("nothing to do for %s", item_id)
        return
    _log.info("attempt %d of %s begins", taken.attempt, item_id)
    slot = node.slots.get()
    try:
        Attempt(node, taken, slot).run()
    finally:
        node.slots.put(slot)


class _Released(Exception):
    """This attempt gives its row up without an end: `outcome` says why."""

    def __init__(self, outcome: str, exit_code: int | None = None) -> None:
        super().__init__(outcome)
        self.outcome, self.exit_code = outcome, exit_code


class _NotOurs(Exception):
    """Somebody else has the row, or it has ended: write nothing."""


class _Ended(Exception):
    """The attempt is over, and this is how its row ends."""

    def __init__(self, end: End) -> None:
        super().__init__(end.status)
        self.end = end


class Attempt:
    """One claim. `run` ends the row, gives it back, or writes nothing when it has lost it."""

    def __init__(self, node: Node, taken: Claim, slot: int) -> None:
        self._node, self._claim, self._slot = node, taken, slot
        self._folder = WorkFolder(node.settings.work_dir, taken)
        self._child: Child | None = None
        self._lease = Lease(taken, node.writes, node.reads, self._relay_beat)
        self._recorder = Recorder(self._lease, node.writes)

    def run(self) -> None:
        """What goes wrong on our side ends the row as `internal_error`; raises only where the database stays away."""
        has_ended = False
        with self._lease:
            try:
                has_ended = self._end(self._work())
            except _NotOurs:
                _log.warning("attempt %d of %s has lost its row", self._claim.attempt, self._claim.item_id)
            except _Released as released:
                has_ended = self._release(released.outcome, released.exit_code)
            finally:
                # A row that somebody else has now keeps its checkpoints: they are his.
                self._folder.remove(with_checkpoints=has_ended)
        if has_ended and not self._claim.is_job:
            self._wake_waiting_jobs()

    def _work(self) -> End:
        """Everything but the last transaction; returns how the row ends."""
        try:
            with self._recorder:
                if self._claim.is_job:
                    self._recorder.stage("starting", 0.0)
                task = self._prepare()
                if task.needs_conversion:
                    self._convert(task)
                return self._finish_engine(task, self._run_engine(task))
        except _Ended as ended:
            return ended.end
        except NotRunnable as error:
            return self._failed(error.error)
        except InsufficientStorage as error:
            return self._failed(stored_error(error.code, error.detail, error_class="transient", hint=error.hint))
        except AppError as error:
            return self._failed(stored_error(error.code, error.detail, error_class="user", hint=error.hint))
        except (_NotOurs, _Released):
            raise
        except Exception as error:
            return self._failed(self._error_of_ours(error))

    def _error_of_ours(self, error: Exception) -> dict[str, Any]:
        """What a client is told of an error that is not the engine's; raises where another attempt may do better."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = "the disk of the worker is full"
            return stored_error(
                "insufficient_storage", full, error_class="transient", hint="free some space, try again"
            )
        if is_unavailable(error) and not isinstance(error, OSError):
            raise _Released("database_lost") from error
        _log.exception("attempt %d of %s failed", self._claim.attempt, self._claim.item_id)
        detail = f"the worker failed: {type(error).__name__}"
        return stored_error("internal_error", detail, error_class="internal", hint="tell us the id")

    def _prepare(self) -> Task:
        task = self._transact(lambda session: read_task(session, self._claim))
        self._folder.make()
        fill_folder(self._folder, task, self._node.settings, self._node.storage)
        return task

    def _run_engine(self, task: Task) -> Ending:
        locks = (str(self._folder.lock), *self._device_locks()) if self._claim.is_job else ()
        threads = self._node.settings.threads_per_job
        path = self._folder.path
        if self._claim.is_job:
            assignment = Assignment(str(path), threads, locks)
            return self._supervise(self._launch(assignment), task.wall_seconds)
        return self._supervise(self._execute(self._untrusted(path)), task.wall_seconds)

    def _convert(self, task: Task) -> None:
        """The job's first stage for a TorchScript file that came without a signature: inspected again, with one."""
        self._recorder.stage("converting", 0.01)
        path = self._folder.path / "convert"
        make_inner(path)
        fill_conversion(path, task, self._node.settings, self._node.storage)
        ending = self._supervise(self._execute(self._untrusted(path)), INSPECTION_SECONDS)
        verdict = self._verdict(path, ending, INSPECTION_SECONDS, is_job=False)
        if verdict.status != "ready":
            raise _Ended(self._failed(verdict.plain.get("error"), ending.exit_code))
        (path / "output/graph.onnx").replace(self._folder.path / "input/graph.onnx")
        (self._folder.path / "input/graph.json").write_text(json.dumps(verdict.plain["facts"]["graph_facts"]))
        shutil.rmtree(path, ignore_errors=True)

    def _untrusted(self, path: Path) -> Assignment:
        size = sum(file.stat().st_size for file in (path / "input").iterdir())
        space = memory_limit(self._node.num_slots) + _ADDRESS_SPACE_SLACK
        return Assignment(
            str(path), self._node.settings.threads_per_job, address_space=space, file_size=8 * size + (1 << 30)
        )

    def _launch(self, assignment: Assignment) -> Child:
        launcher = self._node.launcher
        child = launcher.launch(assignment) if launcher is not None else None
        return child or self._execute(assignment)

    def _execute(self, assignment: Assignment) -> Child:
        environment = clean_environment(os.environ, assignment.threads, assignment.work_dir)
        if assignment.address_space:
            environment |= RETURN_MEMORY
        return ExecChild.start(assignment, self._node.entry, environment)

    def _device_locks(self) -> tuple[str, ...]:
        """A lock per accelerator and slot, on the whole machine: a second process waits until the first is gone."""
        device = self._node.settings.device
        has_accelerator = any(Path("/dev").glob("nvidia[0-9]*"))
        if device == "cpu" or (device == "auto" and not has_accelerator):
            return ()
        name = "".join(c if c.isalnum() else "-" for c in device)
        return (str(Path(tempfile.gettempdir()) / f"featherweight-{name}-{self._slot}.lock"),)

    def _supervise(self, child: Child, wall_seconds: float) -> Ending:
        start = _ACCELERATOR_START_SECONDS if self._device_locks() else Limits.start_seconds
        limits = Limits(wall_seconds, memory_limit(self._node.num_slots), start)
        self._child = child
        try:
            ending = supervise(child, self._lease, limits, self._node.stopping, self._take_line)
        finally:
            child.kill()
            self._child = None
            child.close()
        self._check(ending)
        return ending

    def _check(self, ending: Ending) -> None:
        """Raise where this attempt does not end its row by what the engine did."""
        code = ending.exit_code
        match ending.reason:
            case "lost":
                raise _NotOurs
            case "overdue":
                raise _Released("lease_overdue", code)
            case "stopping":
                raise _Released("handed_back", code)
            case "cancelled":
                raise _Ended(self._cancelled(code))
            case "never_started" if self._node.launcher is not None:
                self._node.launcher.restart()

    def _finish_engine(self, task: Task, ending: Ending) -> End:
        verdict = self._verdict(self._folder.path, ending, task.wall_seconds, is_job=self._claim.is_job)
        if self._claim.is_job:
            self._recorder.stage("saving", 0.99)
            return end_of_job(verdict, self._keep_artifacts(verdict), ending.exit_code)
        graph = self._folder.path / "output/graph.onnx"
        is_there = verdict.status == "ready" and graph.is_file() and not graph.is_symlink()
        kept = keep(self._node.storage, graph, "graph.onnx", "graph", "onnx") if is_there else None
        return end_of_upload(verdict, kept, is_model=self._claim.table is ModelRow)

    def _verdict(self, path: Path, ending: Ending, wall_seconds: float, *, is_job: bool) -> Verdict:
        """What the child says; an outcome that was written whole counts, however the process ended after that."""
        verdict = read_outcome(path, is_job=is_job) if ending.reason == "exited" else None
        is_ours = verdict is None or (verdict.plain.get("error") or {}).get("class") == "internal"
        if is_ours and ending.tail.strip():
            _log.warning("the engine of %s ended with %s:\n%s", self._claim.item_id, ending.exit_code, ending.tail)
        if verdict is not None:
            return verdict
        if needs_another_try(ending):
            raise _Released("child_killed", ending.exit_code)
        raise _Ended(self._failed(error_of(ending, wall_seconds, is_job=self._claim.is_job), ending.exit_code))

    def _keep_artifacts(self, verdict: Verdict) -> list[Kept]:
        kept = []
        for entry, path in listed_files(self._folder.path, verdict):
            if self._lease.is_lost:
                raise _NotOurs
            if self._lease.is_cancelled:
                raise _Ended(self._cancelled(None))
            kept.append(keep(self._node.storage, path, entry["name"], entry["kind"], entry["format"]))
        return kept

    def _cancelled(self, exit_code: int | None) -> End:
        """The end of a cancelled job: its best checkpoint is kept where there is one."""
        best = self._folder.checkpoints / "best.onnx"
        is_there = best.is_file() and not best.is_symlink()
        kept = [keep(self._node.storage, best, "model.onnx", "checkpoint", "onnx")] if is_there else []
        return End("cancelled", "cancelled", artifacts=kept, exit_code=exit_code)

    def _failed(self, error: dict[str, object] | None, exit_code: int | None = None) -> End:
        status = "failed" if self._claim.is_job else "rejected"
        return End(status, status, error, exit_code=exit_code)

    def _end(self, end: End) -> bool:
        """Write the end; a cancel that came before it wins."""
        if self._transact(lambda session: finish(session, self._claim, end)):
            _log.info("%s: %s", self._claim.item_id, end.status)
            return True
        cancelled = self._cancelled(end.exit_code)
        if self._claim.is_job and self._transact(lambda session: finish(session, self._claim, cancelled)):
            return True
        raise _NotOurs

    def _release(self, outcome: str, exit_code: int | None = None) -> bool:
        """Give the row back; whether it ended all the same (cancelled, or lost too often)."""
        status = self._transact(lambda session: release(session, self._claim, outcome, exit_code))
        _log.warning("attempt %d of %s: %s; now %s", self._claim.attempt, self._claim.item_id, outcome, status)
        if status == "queued":
            self._node.send(self._claim.item_id)
        return status not in (None, "queued")

    def _transact(self, function: Callable[[Session], T]) -> T:
        """One transaction, tried again while the database is away: the fence makes that safe."""
        end = time.monotonic() + _SECONDS_WITHOUT_DATABASE
        while True:
            try:
                with self._node.writes.begin() as session:
                    return function(session)
            except Exception as error:
                if not is_unavailable(error) or time.monotonic() > end:
                    raise
                _log.warning("attempt %d of %s waits for the database", self._claim.attempt, self._claim.item_id)
                time.sleep(1)

    def _wake_waiting_jobs(self) -> None:
        with self._node.reads.begin() as session:
            waiting = jobs_waiting_for(session, self._claim.item_id)
        for job_id in waiting:
            self._node.send(job_id)

    def _relay_beat(self) -> None:
        if child := self._child:
            child.beat()

    def _take_line(self, line: bytes) -> None:
        if self._claim.is_job and (event := parse_event(line)):
            self._recorder.take(event)
