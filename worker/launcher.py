"""`python -m worker.launcher`: has imported torch once, and forks a child for each attempt in 20 ms.

The worker executes it with a clean environment. It imports, and does nothing else: a parent that has run one operator with
two threads makes every fork hang for ever. It opens no database and never touches CUDA. An attempt arrives on the control
socket (`SOCK_SEQPACKET`) as an assignment with three descriptors: the socket of the child, a socket to report its number
and its end on, and the pipe for its output.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from app.lifeline import die_with_parent
from worker.child import DEFAULT_ENTRY, Assignment, Entry, load_entry, run_child

MAX_MESSAGE_BYTES = 65_536
PRELOADED = ("torch", "torch._dynamo", "worker.compressor.pipeline")

_log = logging.getLogger("worker.launcher")


class Launcher:
    """Single-threaded: it sleeps until the worker sends something or a child ends."""

    def __init__(self, control: socket.socket, entry: Entry) -> None:
        self._control = control
        self._entry = entry
        self._reports: dict[int, socket.socket] = {}
        self._wake_reading, self._wake_writing = os.pipe()

    def run(self) -> None:
        """Serve until the worker closes its end."""
        for descriptor in (self._wake_reading, self._wake_writing):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wake_writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self._control.fileno(), self._wake_reading], [], [])
            if self._wake_reading in readable:
                with suppress(BlockingIOError):
                    os.read(self._wake_reading, 512)
            self._reap()
            if self._control.fileno() in readable and not self._receive():
                return

    def _receive(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 3)
        if not message:
            return False
        channel, report = (socket.socket(fileno=number) for number in descriptors[:2])
        output = descriptors[2]
        if not _is_given_up(report):
            self._fork(Assignment.from_json(message), channel, report, output)
        channel.close()
        os.close(output)
        return True

    def _fork(self, assignment: Assignment, channel: socket.socket, report: socket.socket, output: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(parent, output)
            report.close()
            run_child(assignment, channel, lambda: self._entry)
        self._reports[pid] = report
        _tell(report, {"pid": pid})

    def _become_child(self, parent: int, output: int) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(parent)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in (output, self._wake_reading, self._wake_writing):
            os.close(number)
        self._control.close()
        for report in self._reports.values():
            report.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if report := self._reports.pop(pid, None):
                _tell(report, {"exit": os.waitstatus_to_exitcode(status)})
                report.close()


def _tell(report: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):
        report.sendall(json.dumps(message).encode() + b"\n")


def _is_given_up(report: socket.socket) -> bool:
    """Whether the attempt was cancelled while we were still importing: its other end is closed."""
    poller = select.poll()
    poller.register(report, select.POLLHUP)
    return bool(poller.poll(0))


def main() -> None:
    """Import first, then serve what has been waiting on the socket since."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--entry", default=DEFAULT_ENTRY)
    parsed = parser.parse_args()
    die_with_parent(parsed.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="launcher: %(message)s")
    if parsed.entry == DEFAULT_ENTRY:
        _preload()
    Launcher(socket.socket(fileno=parsed.control), load_entry(parsed.entry)).run()


def _preload() -> None:
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except Exception:
            # The child meets the same error, and its job tells it; a launcher that ends here would be started for ever.
            _log.exception("cannot import %s", name)


if __name__ == "__main__":
    main()
