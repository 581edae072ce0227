"""The worker's side of its launcher: one is kept running, and told what to fork."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from worker.child import Assignment
from worker.children import ForkedChild

_log = logging.getLogger(__name__)


class LauncherKeeper:
    """Keeps one launcher running, from a thread that lives as long as the process: PDEATHSIG follows it."""

    def __init__(self, entry: str, environment: Mapping[str, str]) -> None:
        self._entry, self._environment = entry, environment
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_up = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="launcher", daemon=True)

    def start(self) -> None:
        """Start the launcher; it imports for some seconds, and assignments may be sent at once."""
        self._thread.start()

    def stop(self) -> None:
        """End it, and with it its children."""
        with self._is_up:
            self._is_stopping = True
            if self._process is not None:
                self._process.kill()
        self._thread.join(5)

    def restart(self) -> None:
        """End a launcher that does not launch; another one is started."""
        with self._is_up:
            if self._process is not None:
                self._process.kill()

    def launch(self, assignment: Assignment, seconds: float = 10.0) -> ForkedChild | None:
        """Have a child forked; None where no launcher came up in time."""
        end = time.monotonic() + seconds
        with self._is_up:
            while time.monotonic() < end and not self._is_stopping:
                if self._control is not None:
                    with suppress(OSError):
                        return ForkedChild.start(assignment, self._control)
                self._is_up.wait(0.1)
        return None

    def _run(self) -> None:
        delay = 0.1
        while not self._is_stopping:
            began = time.monotonic()
            process = self._start()
            code = process.wait()
            with self._is_up:
                if self._control is not None:
                    self._control.close()
                self._control = None
            if self._is_stopping:
                return
            delay = 0.1 if time.monotonic() - began > 10 else min(delay * 2, 10.0)
            _log.warning("the launcher ended (%s); started again in %.1f s", code, delay)
            time.sleep(delay)

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "worker.launcher", "--entry", self._entry]
        with theirs:
            process = subprocess.Popen(
                [*command, "--control", str(theirs.fileno()), "--parent", str(os.getpid())],
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        with self._is_up:
            self._process, self._control = process, ours
            self._is_up.notify_all()
        return process
