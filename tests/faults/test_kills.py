"""`kill -9` of every process of the service, each in the middle of a job that trains a small network for real.

Once each by default; `pytest tests/faults/test_kills.py --times 10` ten times each. Whatever dies: the job ends `succeeded`
or `failed` with a clear reason, two processes never work on it at once, and no process and no scratch file is left.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.faults.networks import digits_like, small_network
from tests.faults.service import OneAtATime, Service, wait_for

SPEC = {
    "version": 1,
    "steps": [
        {"prune": {"target": {"macs": "50%"}}},
        {"distill": {"epochs": 15, "batch_size": 64}},
    ],
}
VICTIMS = ("child", "launcher", "worker", "broker", "api")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("kills") / "data")
    service.start()
    yield service
    folder = service.socket_folder()
    service.stop()
    assert service.processes() == {}
    assert not folder.exists()


@pytest.fixture(scope="module")
def uploads(service):
    model_id = service.upload("models", "net.onnx", small_network())
    return {"model": model_id, "dataset": service.upload("datasets", "data.npz", digits_like())}


def pid_of(service, victim, job_id):
    found = {
        "child": lambda: service.engines(job_id),
        "launcher": lambda: [p for p in service.launchers() if p not in service.engines(job_id)],
        "worker": lambda: service.find("-m worker", "--queue jobs"),
        "broker": lambda: service.find("--unixsocket"),
        "api": lambda: service.find("app.cli.main", "api"),
    }[victim]()
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_process_is_survived(service, uploads, victim, round_number):
    job_id = service.call("POST", "/v1/jobs", {**uploads, "spec": SPEC | {"seed": round_number}})["id"]
    with OneAtATime(service, job_id) as watch:
        wait_for(lambda: (service.patiently(job_id) or {}).get("stage") not in (None, "starting"), 60)
        time.sleep(random.uniform(0.0, 2.0))
        was_running = service.job(job_id)["status"] == "running"
        pid = pid_of(service, victim, job_id)
        os.kill(pid, signal.SIGKILL)
        if victim != "child":
            began = time.monotonic()
            wait_for(lambda: pid_of(service, victim, job_id) not in (None, pid), 10)
            print(f"{victim}: there again after {time.monotonic() - began:.2f} s")
        job = service.ended(job_id)
    print(f"{victim}: {job['status']} at attempt {job['attempt']}, running when killed: {was_running}")
    assert was_running, "the job has to be longer"
    assert job["status"] == "succeeded" or (job["status"] == "failed" and job["error"]["code"] == "worker_lost"), job
    assert job["attempt"] == (1 if victim in ("broker", "api") else 2)
    assert watch.most == 1
    service.wait_ready()
    wait_for(lambda: service.scratch() == [])
    wait_for(lambda: service.engines(job_id) == [])
    names = [row["name"] for row in service.call("GET", f"/v1/jobs/{job_id}/artifacts")["data"]]
    assert len(names) == len(set(names)) and "model.onnx" in names
