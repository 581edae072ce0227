"""The process in which one attempt runs, forked by the launcher or started by `python -m worker.child`.

It has a session of its own, no credentials in its environment, nothing open but a socket to the worker and a pipe for its
output, and a guard that kills its group. It takes a lock per job, so that a second process for the same job waits until the
first is gone, and a lock per accelerator.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.lifeline import die_with_parent
from worker.guard import start_guard

Entry = Callable[[Path, Callable[[dict[str, Any]], None], Callable[[], bool]], None]
DEFAULT_ENTRY = "worker.compressor.entry:run"
MAX_LINE_BYTES = 4096
STARTED = b'{"kind": "started"}'
"""The first line: set-up is done, the locks are held, the engine's time begins."""
FAILED = 70
"""Exit status of an engine that let an exception out (EX_SOFTWARE)."""


@dataclass(frozen=True)
class Assignment:
    """What a child is told. `locks` are files to hold while it runs; `address_space` in bytes, None for no limit."""

    work_dir: str
    threads: int
    locks: tuple[str, ...] = ()
    address_space: int | None = None
    file_size: int | None = None

    def as_json(self) -> str:
        """For a command line or a message."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Assignment:
        """The inverse of `as_json`."""
        plain = json.loads(text)
        return cls(**plain | {"locks": tuple(plain["locks"])})


def load_entry(name: str) -> Entry:
    """The callable at `module:function`."""
    module, _, function = name.partition(":")
    entry: Entry = getattr(importlib.import_module(module), function)
    return entry


def run_child(assignment: Assignment, channel: socket.socket, entry: Callable[[], Entry]) -> None:
    """Set this process up, run the engine, and exit: 0 when it returned, `FAILED` when it raised. Never returns.

    `os._exit` leaves out the interpreter's end, where libraries are known to crash after all the work is done.
    """
    status = FAILED
    try:
        _set_up(assignment, channel)
        _take_locks(assignment)
        emit = _emitter(channel)
        channel.sendall(STARTED + b"\n")
        entry()(Path(assignment.work_dir), emit, lambda: False)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _set_up(assignment: Assignment, channel: socket.socket) -> None:
    os.umask(0o077)
    os.chdir(assignment.work_dir)
    # The kernel is to choose this process when memory runs out, and not the worker or a database.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    start_guard(channel)
    _limit(resource.RLIMIT_CORE, 0)
    if assignment.file_size is not None:
        _limit(resource.RLIMIT_FSIZE, assignment.file_size)
    if assignment.address_space is not None and sys.platform.startswith("linux"):
        _limit(resource.RLIMIT_AS, assignment.address_space)
    # Locks of the whole machine lie in its own temporary folder; what libraries leave in theirs goes with the attempt.
    os.environ["FEATHERWEIGHT_LOCK_DIR"] = tempfile.gettempdir()
    scratch = Path(assignment.work_dir) / "tmp"
    scratch.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = os.environ["HOME"] = tempfile.tempdir = str(scratch)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(assignment.threads)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def _take_locks(assignment: Assignment) -> None:
    for name in assignment.locks:
        # Never closed: the lock goes with the process, whatever ends it.
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _emitter(channel: socket.socket) -> Callable[[dict[str, Any]], None]:
    """Writes events as JSON lines. One that is too long is dropped: a kill could tear it, and the next would be lost."""

    def emit(event: dict[str, Any]) -> None:
        # A loss may be infinite, or a number of numpy's: neither is a reason to end the run.
        line = json.dumps(event, default=_plain).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            channel.sendall(line)

    return emit


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def main() -> None:
    """`python -m worker.child ASSIGNMENT --channel FD --parent PID`: the exec'd child, for untrusted bytes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("assignment")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--entry", default=DEFAULT_ENTRY)
    parsed = parser.parse_args()
    die_with_parent(parsed.parent)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run_child(
        Assignment.from_json(parsed.assignment), socket.socket(fileno=parsed.channel), lambda: load_entry(parsed.entry)
    )


if __name__ == "__main__":
    main()
