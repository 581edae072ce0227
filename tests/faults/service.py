"""`featherweight serve` started for real, watched from outside: its processes, its scratch files, its jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENDED = {"succeeded", "failed", "infeasible", "cancelled"}
_WITH_ENGINE = """
import sys
from app.cli.serve import serve
from app.logging import configure_logging
from app.settings import load_settings
configure_logging("text")
serve(load_settings(), ["--entry", sys.argv[1]])
"""


class Service:
    """One `serve` on a data folder of its own. `entry` replaces the engine."""

    def __init__(self, data_dir: Path, entry: str | None = None, **settings: str) -> None:
        self.data_dir, self.entry = data_dir, entry
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        told = {"DATA_DIR": str(data_dir), "PORT": str(self.port), "DEVICE": "cpu", **settings}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FEATHERWEIGHT_")}
        self.environment |= {f"FEATHERWEIGHT_{k}": v for k, v in told.items()} | {"PYTHONPATH": str(ROOT)}
        self.log_path = data_dir.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "app.cli.main", "serve"]
        if self.entry:
            command = [sys.executable, "-c", _WITH_ENGINE, self.entry]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_ready()

    def wait_ready(self, seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not self.is_ready():
            assert self.process.poll() is None, self.log_path.read_text()[-4000:]
            assert time.monotonic() < end, self.log_path.read_text()[-4000:]
            time.sleep(0.1)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self.call("GET", "/readyz")["status"] == "ready"
        return False

    def stop(self, number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)

    def call(self, method: str, path: str, body: bytes | dict | None = None, content_type: str = "application/json"):
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Accept": "application/json"}
        )
        if data is not None:
            request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=70) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise ValueError(f"{method} {path}: {error.code} {error.read().decode()[:2000]}") from None

    def upload(self, collection: str, filename: str, content: bytes, name: str | None = None) -> str:
        boundary = uuid.uuid4().hex
        parts = [(f'name="file"; filename="{filename}"', content)] + ([('name="name"', name.encode())] if name else [])
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
            for head, value in parts
        )
        body += f"--{boundary}--\r\n".encode()
        made = self.call("POST", f"/v1/{collection}", body, f"multipart/form-data; boundary={boundary}")
        row = self.call("GET", f"/v1/{collection}/{made['id']}?wait=60")
        assert row["status"] == "ready", row
        return made["id"]

    def job(self, job_id: str) -> dict:
        return self.call("GET", f"/v1/jobs/{job_id}")

    def patiently(self, job_id: str) -> dict | None:
        """The job; None while the API is being started again."""
        with contextlib.suppress(OSError):
            return self.job(job_id)
        return None

    def until(self, job_id: str, *statuses: str, seconds: float = 120.0) -> dict:
        end = time.monotonic() + seconds
        while True:
            job = self.patiently(job_id)
            if job and job["status"] in statuses:
                return job
            assert time.monotonic() < end, f"{job}\n{self.log_path.read_text()[-6000:]}"
            time.sleep(0.02)

    def ended(self, job_id: str, seconds: float = 180.0) -> dict:
        return self.until(job_id, *ENDED, seconds=seconds)

    def processes(self) -> dict[int, list[str]]:
        """All processes of this service: those whose environment or folder names the data folder, and serve's own."""
        wanted, found = str(self.data_dir), {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                environment = (folder / "environ").read_bytes().decode(errors="replace")
                is_ours = f"FEATHERWEIGHT_DATA_DIR={wanted}\0" in environment or f"={wanted}/" in environment
                if command and (is_ours or str((folder / "cwd").readlink()).startswith(wanted)):
                    found[int(folder.name)] = command
        return found

    def find(self, *words: str) -> list[int]:
        """Processes whose command line has all these words."""
        return [pid for pid, command in self.processes().items() if all(w in " ".join(command) for w in words)]

    def launchers(self) -> list[int]:
        """The launchers without what they forked, which has their command line."""
        found = self.find("worker.launcher")
        return [pid for pid in found if _parent_of(pid) not in found]

    def engines(self, job_id: str) -> list[int]:
        """The live leaders of sessions that work in a folder of this job."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                where = str((folder / "cwd").readlink())
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                if f"/{job_id}-" in where and int(state[3]) == int(folder.name) and state[0] != "Z":
                    found.append(int(folder.name))
        return found

    def scratch(self) -> list[str]:
        """What lies in the folders for scratch files."""
        folders = (self.data_dir / "work", self.data_dir / "storage" / "incoming")
        return [str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()]

    def socket_folder(self) -> Path:
        """Of the embedded broker."""
        [pid] = self.find("--unixsocket")
        command = self.processes()[pid]
        return Path(command[command.index("--unixsocket") + 1]).parent


def _parent_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


class OneAtATime(threading.Thread):
    """Looks fifty times a second how many engines work on a job, while used as a context."""

    def __init__(self, service: Service, job_id: str) -> None:
        super().__init__(daemon=True)
        self.service, self.job_id, self.most, self.ends = service, job_id, 0, threading.Event()

    def run(self) -> None:
        while not self.ends.wait(0.02):
            self.most = max(self.most, len(self.service.engines(self.job_id)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.join()


def wait_for(what, seconds: float = 10.0):
    """The first true answer of `what()`."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return answer
