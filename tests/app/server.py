"""The API as a process of its own, for what only a real socket and a real address space can show."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.db.migrate import upgrade


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]
    data_dir: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory_bytes(self) -> int:
        """Resident memory now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def talk(self, data: bytes, *, seconds: float = 5) -> bytes:
        """Send raw bytes and read until the server closes or says nothing for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            answer = b""
            with contextlib.suppress(TimeoutError):
                while chunk := connection.recv(65536):
                    answer += chunk
                    connection.settimeout(0.5)
            return answer


@contextlib.contextmanager
def serving(data_dir: Path, **settings: str) -> Iterator[Server]:
    """Uvicorn on a free port, as `featherweight api` runs it, without broker and worker."""
    upgrade(f"sqlite:///{data_dir.resolve() / 'featherweight.db'}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("FEATHERWEIGHT_")}
    env |= {f"FEATHERWEIGHT_{k}": v for k, v in {"DATA_DIR": str(data_dir), **settings}.items()}
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app.main:create_app",
        "--factory",
        "--port",
        str(port),
        "--no-access-log",
    ]
    process = subprocess.Popen(command, env=env)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield Server(port, process, data_dir)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
