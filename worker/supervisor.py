"""Watches one engine process until its end: exit, deadline, memory, cancel, lease, and the worker's own stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

from worker.child import STARTED
from worker.children import Child
from worker.lease import Lease

TICK_SECONDS = 0.02
_DESCENDANTS_EVERY = 25
_SECONDS_TO_DIE = 15.0
MEMORY_SHARE = 0.8

Reason = Literal["exited", "cancelled", "time_limit", "out_of_memory", "lost", "overdue", "stopping", "never_started"]


@dataclass(frozen=True)
class Limits:
    """Of one attempt: seconds for the engine, bytes of resident memory of all its processes, and seconds until the engine
    has started, which it does when it has its locks."""

    wall_seconds: float
    memory_bytes: int
    start_seconds: float = 120.0


@dataclass(frozen=True)
class Ending:
    """Why an engine process ended; `exit_code` is negative for a signal. `tail` is the last that it printed."""

    reason: Reason
    exit_code: int | None
    tail: str


def memory_limit(num_slots: int) -> int:
    """Bytes that one of `num_slots` attempts may use: its part of 80 % of the machine or the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(name).read_text()))
    return int(total * MEMORY_SHARE) // num_slots


def supervise(
    child: Child, lease: Lease, limits: Limits, stopping: Event, take_line: Callable[[bytes], None]
) -> Ending:
    """Return when the child's whole process group is gone. `take_line` gets each of its event lines."""
    num_kills_before = _num_oom_kills()
    clock, tick, reason = _Clock(limits), 0, None
    while child.poll() is None:
        child.wait(TICK_SECONDS)
        _read(child, clock.watching(take_line))
        tick += 1
        memory = _resident_bytes(child.pid, with_descendants=tick % _DESCENDANTS_EVERY == 0)
        reason = _reason_to_end(lease, stopping, memory > limits.memory_bytes) or clock.reason()
        if reason:
            break
    exit_code = _end(child, take_line)
    if reason is None:
        reason = "lost" if lease.is_lost else "overdue" if lease.is_overdue else "exited"
    if reason == "exited" and exit_code == -signal.SIGKILL and _num_oom_kills() > num_kills_before:
        reason = "out_of_memory"
    return Ending(reason, exit_code, child.tail)


class _Clock:
    """The deadline, which counts from the child's first line."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._began, self._has_started = limits, time.monotonic(), False

    def watching(self, take_line: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def take(line: bytes) -> None:
            if line == STARTED:
                self._began, self._has_started = time.monotonic(), True
            else:
                take_line(line)

        return take

    def reason(self) -> Reason | None:
        seconds = time.monotonic() - self._began
        if self._has_started:
            return "time_limit" if seconds > self._limits.wall_seconds else None
        return "never_started" if seconds > self._limits.start_seconds else None


def _reason_to_end(lease: Lease, stopping: Event, is_too_large: bool) -> Reason | None:
    facts: tuple[tuple[bool, Reason], ...] = (
        (lease.is_lost, "lost"),
        (lease.is_overdue, "overdue"),
        (lease.is_cancelled, "cancelled"),
        (is_too_large, "out_of_memory"),
        (stopping.is_set(), "stopping"),
    )
    return next((reason for is_so, reason in facts if is_so), None)


def _read(child: Child, take_line: Callable[[bytes], None]) -> None:
    child.drain()
    for line in child.lines():
        take_line(line)


def _end(child: Child, take_line: Callable[[bytes], None]) -> int | None:
    """Kill the group, also after a natural end: what the engine started goes with it."""
    child.kill()
    end = time.monotonic() + _SECONDS_TO_DIE
    while (code := child.poll()) is None and time.monotonic() < end:
        time.sleep(0.005)
    _read(child, take_line)
    return code


def _resident_bytes(pid: int | None, *, with_descendants: bool) -> int:
    """Resident memory, 0 where the system does not tell. Shared pages count in each process."""
    if pid is None:
        return 0
    pids = [pid, *_descendants(pid)] if with_descendants else [pid]
    return sum(_resident_of(one) for one in pids)


def _resident_of(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/statm").read_bytes().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for name in (task / "children").read_text().split():
                found += [int(name), *_descendants(int(name))]
    return found


def _num_oom_kills() -> int:
    """How often the kernel has killed for want of memory since the machine started."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
