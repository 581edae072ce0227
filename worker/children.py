"""The worker's side of an engine process: starting it, its events, its heartbeats, its output, its end."""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

from worker.child import MAX_LINE_BYTES, Assignment

# What a child needs of the worker's environment; database, broker and storage credentials are not among it.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
_PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "PYTORCH_")
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
"""For a child that looks at a network once: glibc gives each freed tensor back to the system, instead of keeping the holes
between them for the next. ResNet-50 as TorchScript peaks at 2.1 times its weights so, not at 2.5; training would be slower."""
_OUTPUT_BYTES = 1 << 20
_TAIL_BYTES = 16_384
_F_SETPIPE_SZ = 1031
CAN_FORK = sys.platform.startswith("linux")


def clean_environment(source: Mapping[str, str], threads: int, home: str) -> dict[str, str]:
    """The environment of launcher and children. Idle OpenMP threads that spin starve a second job, hence PASSIVE."""
    kept = {k: v for k, v in source.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    return kept | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        # onnxruntime reports its use to its makers unless told not to, from threads that it starts when it is imported.
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": home,
    }


class Child:
    """One engine process, whoever started it. Not thread-safe, but for `beat`."""

    def __init__(self, channel: socket.socket, output: int) -> None:
        self._channel = channel
        self._output = output
        self._partial = b""
        self._tail = b""
        self._closing = threading.Lock()
        self._is_closed = False
        channel.setblocking(False)
        os.set_blocking(output, False)
        with suppress(OSError):
            fcntl.fcntl(output, _F_SETPIPE_SZ, _OUTPUT_BYTES)

    @property
    def pid(self) -> int | None:
        """The process, None while the launcher has not started it yet."""
        raise NotImplementedError

    def poll(self) -> int | None:
        """The exit status (negative: the signal), None while it runs."""
        raise NotImplementedError

    def wait(self, seconds: float) -> None:
        """Sleep until there may be events, at most so long."""
        select.select([self._channel], [], [], seconds)

    def beat(self) -> None:
        """Relay one heartbeat to the guard."""
        with self._closing, suppress(OSError):
            if not self._is_closed:
                self._channel.send(b".")

    def lines(self) -> list[bytes]:
        """The whole event lines that have arrived; what is longer than allowed is dropped."""
        data = b""
        with suppress(OSError):
            while len(data) < _OUTPUT_BYTES and (chunk := self._channel.recv(65_536)):
                data += chunk
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[: MAX_LINE_BYTES + 1]
        return [line for line in whole if line and len(line) <= MAX_LINE_BYTES]

    def drain(self) -> None:
        """Take what it printed, or it would block; only the tail is kept."""
        with suppress(OSError):
            if chunk := os.read(self._output, _OUTPUT_BYTES):
                self._tail = (self._tail + chunk)[-_TAIL_BYTES:]

    @property
    def tail(self) -> str:
        """The last that it printed."""
        return self._tail.decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL for its whole process group; returns at once."""
        if (pid := self.pid) is None:
            return
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            # Forked a moment ago, and not the leader of a group yet; or gone.
            if self.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of its descriptors, after its end."""
        with self._closing:
            self._is_closed = True
            self._channel.close()
            os.close(self._output)


class ExecChild(Child):
    """Executed by this process, in the thread that watches it (PDEATHSIG follows that thread)."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, output: int) -> None:
        super().__init__(channel, output)
        self._process = process

    @classmethod
    def start(cls, assignment: Assignment, entry: str, environment: Mapping[str, str]) -> ExecChild:
        """`python -m worker.child` in a session of its own."""
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        with theirs:
            command = [sys.executable, "-P", "-m", "worker.child", assignment.as_json(), "--entry", entry]
            try:
                process = subprocess.Popen(
                    [*command, "--channel", str(theirs.fileno()), "--parent", str(os.getpid())],
                    env=dict(environment),
                    cwd=assignment.work_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            finally:
                os.close(writing)
        return cls(process, ours, reading)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()


LAUNCHER_LOST = -1000
"""Exit status of a child whose launcher died: it went with it, and nobody saw how."""


class ForkedChild(Child):
    """Forked by the launcher, which reports its number and its end on a socket."""

    def __init__(self, report: socket.socket, channel: socket.socket, output: int) -> None:
        super().__init__(channel, output)
        self._report = report
        self._reported = b""
        self._pid: int | None = None
        self._exit: int | None = None
        report.setblocking(False)

    @classmethod
    def start(cls, assignment: Assignment, control: socket.socket) -> ForkedChild:
        """Hand the assignment to the launcher; raises OSError where there is none."""
        ours, theirs = socket.socketpair()
        report, their_report = socket.socketpair()
        reading, writing = os.pipe()
        try:
            with theirs, their_report:
                numbers = [theirs.fileno(), their_report.fileno(), writing]
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))
                control.sendmsg([assignment.as_json().encode()], [rights])
        except OSError:
            for end in (ours, report):
                end.close()
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(report, ours, reading)

    @property
    def pid(self) -> int | None:
        self._read_report()
        return self._pid

    def poll(self) -> int | None:
        self._read_report()
        return self._exit

    def kill(self) -> None:
        super().kill()
        if self._pid is None:
            # Not started yet: the launcher sees the closed socket and leaves it.
            self._exit = -signal.SIGKILL
            self._report.close()

    def close(self) -> None:
        super().close()
        self._report.close()

    def _read_report(self) -> None:
        if self._exit is not None:
            return
        try:
            while chunk := self._report.recv(4096):
                self._reported += chunk
            is_over = True
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        *lines, self._reported = self._reported.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._pid = message.get("pid", self._pid)
            self._exit = message.get("exit", self._exit)
        if is_over and self._exit is None:
            self._exit = LAUNCHER_LOST
