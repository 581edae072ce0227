"""A tiny process beside `serve` that clears up when `serve` itself is killed.

It waits on a pipe whose other end only `serve` holds. At its end it kills the process groups that were reported and
removes the folder of the broker's socket. On Linux `PDEATHSIG` has killed the processes by then; elsewhere this is what does.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self


class Keeper:
    """Fork it before anything else runs; report each process group, each folder, and what has ended."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    @classmethod
    def start(cls, inherited: Iterable[int] = ()) -> Self:
        """Fork the keeper; `inherited` are descriptors that it must not keep open (the lock of the data folder)."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                os.close(writing)
                for descriptor in inherited:
                    os.close(descriptor)
                _keep(reading)
            os._exit(0)
        os.close(reading)
        return cls(writing)

    def add_group(self, pgid: int) -> None:
        """Kill this process group if `serve` dies."""
        self._tell(f"+{pgid}")

    def remove_group(self, pgid: int) -> None:
        """This group has ended; its number may be somebody else's soon."""
        self._tell(f"-{pgid}")

    def add_folder(self, folder: Path) -> None:
        """Remove this folder when `serve` ends, however it ends."""
        self._tell(f"/{folder}")

    def close(self) -> None:
        """Let it clear up what is left, and end."""
        os.close(self._pipe)

    def _tell(self, line: str) -> None:
        with suppress(OSError):
            os.write(self._pipe, line.encode() + b"\n")


def _keep(pipe: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    folders: list[str] = []
    with os.fdopen(pipe) as lines:
        for line in lines:
            kind, value = line[0], line[1:].rstrip("\n")
            if kind == "+":
                groups.add(int(value))
            elif kind == "-":
                groups.discard(int(value))
            else:
                folders.append(value)
    for group in groups:
        with suppress(OSError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
