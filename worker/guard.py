"""The dead-man switch: a tiny process in the engine's process group that kills the whole group.

It does so when it hears no heartbeat for `SILENCE_SECONDS` (the worker is frozen or cut off, and somebody else may have the
job by now), when the worker's end of the socket closes, and when the engine process has ended (which takes along whatever the
engine started). A timer inside the engine process would need its interpreter to be armed again, and that can be busy for
as long as one call into C++ takes; this one has an interpreter of its own, and waits in the kernel.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

SILENCE_SECONDS = 25.0
_LOOK_SECONDS = 1.0


def start_guard(channel: socket.socket, seconds: float = SILENCE_SECONDS) -> None:
    """Fork the guard. To be called once by the leader of a process group, before it has any thread.

    `channel` is the engine's end of the socket to the worker: bytes that arrive are heartbeats, and the guard alone reads it.
    """
    engine_pid = os.getpid()
    if os.fork() == 0:
        with suppress(BaseException):
            _watch(channel, engine_pid, seconds)
        os.killpg(0, signal.SIGKILL)


def _watch(channel: socket.socket, engine_pid: int, seconds: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    engine = _open_process(engine_pid)
    watched = [channel.fileno()] + ([engine] if engine is not None else [])
    silence = 0.0
    # Without pidfd (not Linux) the engine's end shows in the parent's number alone, which has to be looked at.
    step = seconds if engine is not None else min(seconds, _LOOK_SECONDS)
    while silence < seconds and os.getppid() == engine_pid:
        readable, _, _ = select.select(watched, [], [], step)
        if engine in readable:
            return
        if not readable:
            silence += step
        elif channel.recv(512):
            silence = 0.0
        else:
            return


def _open_process(pid: int) -> int | None:
    opener = getattr(os, "pidfd_open", None)
    with suppress(OSError):
        return opener(pid) if opener else None
    return None
