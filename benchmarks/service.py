"""The running service, measured from outside: `python benchmarks/service.py [--gigabytes 1] [--seconds 30]`.

Prints one JSON line for each figure:

- `idle_share_of_one_core`: processor time of all its processes together while nothing happens.
- `submit_to_running_s`: from sending `POST /v1/jobs` to the `started_at` of the row, on an idle worker.
- `two_jobs_over_one`: wall time of two jobs at once (`CONCURRENCY=2`) over one alone, the same job, shortest of three, interleaved.
- `api_growth_mb`: growth of the API process's resident memory over an upload and a download of a large file.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples import demo

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
QUICK = {"version": 1, "preprocess": {"scale": 1 / 16}, "steps": [{"prune": {"target": {"macs": "60%"}}}]}
TRAINING = {"version": 1, "preprocess": {"scale": 1 / 16}, "steps": [{"distill": {"epochs": 60, "batch_size": 50}}]}


def report(name: str, value: float, **more: Any) -> None:
    print(json.dumps({"figure": name, "value": round(value, 4), **more}), flush=True)


def processes(data_dir: Path) -> dict[int, str]:
    """The processes of the service that keeps its data in `data_dir`, by pid: its own and their descendants."""
    commands: dict[int, str] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        commands[int(entry.name)] = command
    found = {pid for pid, command in commands.items() if f"--data-dir {data_dir}" in command}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return {pid: commands[pid] for pid in found}


def cpu_seconds(pids: dict[int, str]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def idle(data_dir: Path, seconds: float) -> None:
    time.sleep(5)
    pids = processes(data_dir)
    before, start = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    report(
        "idle_share_of_one_core",
        (cpu_seconds(pids) - before) / (time.monotonic() - start),
        processes=len(pids),
        seconds=seconds,
    )


def submit(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    return client.post("/v1/jobs", json=body).raise_for_status().json()


def ended(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    while (job := client.get(f"/v1/jobs/{job['id']}", params={"wait": 60}).json())["status"] not in demo.ENDED:
        pass
    assert job["status"] == "succeeded", job
    return job


def submit_to_running(client: httpx.Client, body: dict[str, Any], times: int = 15) -> None:
    found = []
    for _ in range(times):
        start = dt.datetime.now(dt.UTC)
        job = ended(client, submit(client, body))
        found.append((dt.datetime.fromisoformat(job["started_at"]) - start).total_seconds())
        time.sleep(0.5)
    report("submit_to_running_s", statistics.median(found), longest=round(max(found), 4), times=times)


def two_at_once(client: httpx.Client, body: dict[str, Any]) -> None:
    one, two = [], []
    for _ in range(3):
        start = time.monotonic()
        ended(client, submit(client, body))
        one.append(time.monotonic() - start)
        start = time.monotonic()
        for job in [submit(client, body), submit(client, body)]:
            ended(client, job)
        two.append(time.monotonic() - start)
    report("two_jobs_over_one", min(two) / min(one), one_s=round(min(one), 2), two_s=round(min(two), 2))


def large_file(client: httpx.Client, data_dir: Path, gigabytes: float) -> None:
    api = next(pid for pid, command in processes(data_dir).items() if "app.cli.main api" in command)
    path = data_dir / "large.npz"
    with path.open("wb") as out:
        block = os.urandom(1 << 20)
        out.write(b"PK\x03\x04")
        for _ in range(int(gigabytes * 1024)):
            out.write(block)
    before, highest = resident_mb(api), 0.0
    with path.open("rb") as stream:
        row = client.post("/v1/datasets", files={"file": ("large.npz", stream)}, timeout=600).raise_for_status().json()
    highest = max(highest, resident_mb(api))
    with client.stream("GET", f"/v1/datasets/{row['id']}/content", timeout=600) as answer:
        got = 0
        for chunk in answer.iter_bytes(1 << 20):
            got += len(chunk)
            highest = max(highest, resident_mb(api))
    assert got == path.stat().st_size
    path.unlink()
    report("api_growth_mb", highest - before, bytes=got, before_mb=round(before, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        demo.make_files(files)
        for concurrency in ("1", "2"):
            os.environ["FEATHERWEIGHT_CONCURRENCY"] = concurrency
            with demo.service(files / f"service-{concurrency}") as client:
                network = demo.upload(client, "models", files / "digits.onnx")
                data = demo.upload(client, "datasets", files / "digits.npz")
                body = {"model": network["id"], "dataset": data["id"]}
                if concurrency == "1":
                    idle(files / "service-1", options.seconds)
                    submit_to_running(client, body | {"spec": QUICK})
                    large_file(client, files / "service-1", options.gigabytes)
                else:
                    two_at_once(client, body | {"spec": TRAINING})


if __name__ == "__main__":
    main()
