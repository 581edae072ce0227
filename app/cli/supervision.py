"""Runs the processes of the service: starts them, restarts what dies, and ends all of them.

One thread, no polling: it sleeps until a signal arrives (SIGCHLD among them) or the next restart is due.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from app.cli.keeper import Keeper
from app.lifeline import before_exec

_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 10.0
_STEADY_SECONDS = 10.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Service:
    """One process that has to be there. `command` gets the number of the start and says what to execute."""

    name: str
    command: Callable[[int], Sequence[str]]
    environment: Mapping[str, str]
    inherited: tuple[int, ...] = ()
    before_start: Callable[[], None] = lambda: None
    seconds_to_stop: float = 8.0
    process: subprocess.Popen[bytes] | None = None
    num_starts: int = 0
    delay: float = _FIRST_DELAY
    started_at: float = 0.0
    due_at: float = field(default=0.0)


class Supervisor:
    """Keeps services alive until `stop`. Use it as a context: at its end nothing of them is left."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._services: list[Service] = []
        self._wake_reading, self._wake_writing = os.pipe()
        self.is_stopping = False

    def __enter__(self) -> Self:
        for descriptor in (self._wake_reading, self._wake_writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _STOPPING:
            signal.signal(number, self._ask_to_stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        signal.set_wakeup_fd(-1)

    def _ask_to_stop(self, *_: object) -> None:
        self.is_stopping = True

    def add(self, service: Service) -> None:
        """Start `service` and keep it alive from now on."""
        self._services.append(service)
        self._start(service)

    def run_for(self, seconds: float | None) -> None:
        """Watch for so long (None: until somebody asks to stop)."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self.is_stopping:
            now = time.monotonic()
            for service in self._services:
                if service.process is None and service.due_at <= now:
                    self._start(service)
            if end is not None and now >= end:
                return
            times = [s.due_at for s in self._services if s.process is None] + ([end] if end is not None else [])
            self._sleep(max(0.0, min(times) - now) if times else None)
            self._reap()

    def stop(self) -> None:
        """End all services, the last started first to be told: SIGTERM, then SIGKILL when their time is over."""
        self.is_stopping = True
        for service in reversed(self._services):
            self._signal(service, signal.SIGTERM)
        began = time.monotonic()
        while alive := [s for s in self._services if s.process is not None]:
            for service in alive:
                if time.monotonic() - began > service.seconds_to_stop:
                    _log.warning("%s did not stop in %.0f s", service.name, service.seconds_to_stop)
                    self._signal(service, signal.SIGKILL)
            self._sleep(0.2)
            self._reap()

    def _start(self, service: Service) -> None:
        service.before_start()
        service.num_starts += 1
        service.started_at = time.monotonic()
        # preexec_fn is safe here: this process has one thread.
        service.process = subprocess.Popen(
            list(service.command(service.num_starts)),
            env=dict(service.environment),
            pass_fds=service.inherited,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=before_exec(),
        )
        self._keeper.add_group(service.process.pid)

    def _sleep(self, seconds: float | None) -> None:
        select.select([self._wake_reading], [], [], seconds)
        with suppress(BlockingIOError):
            while os.read(self._wake_reading, 512):
                pass

    def _reap(self) -> None:
        """Take leave of all dead children; as process 1 of a container, of orphans too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self._services:
                if service.process is not None and service.process.pid == pid:
                    self._bury(service, os.waitstatus_to_exitcode(status))

    def _bury(self, service: Service, code: int) -> None:
        assert service.process is not None
        pid, service.process = service.process.pid, None
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        self._keeper.remove_group(pid)
        if self.is_stopping:
            return
        now = time.monotonic()
        is_steady = now - service.started_at >= _STEADY_SECONDS
        service.delay = _FIRST_DELAY if is_steady else service.delay
        _log.warning("%s ended (%s); started again in %.1f s", service.name, _reason(code), service.delay)
        service.due_at = now + service.delay
        service.delay = min(service.delay * 2, _LONGEST_DELAY)

    @staticmethod
    def _signal(service: Service, number: signal.Signals) -> None:
        if service.process is not None:
            with suppress(ProcessLookupError):
                os.kill(service.process.pid, number)


def _reason(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
