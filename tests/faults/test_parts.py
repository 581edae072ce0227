"""`featherweight api` and workers started one by one, on a Redis of their own choosing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.faults.service import ROOT, Service, wait_for
from tests.faults.test_processes import rows, submit
from tests.worker.conftest import ENTRY, redis_url  # noqa: F401


@pytest.fixture
def parts(tmp_path, redis_url):  # noqa: F811
    """A service of parts, and how to start one of them."""
    service = Service(tmp_path / "data", BROKER_URL=redis_url)
    started = []

    def start(*words):
        with service.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, env=service.environment, stdout=log, stderr=log
            )
        started.append(process)
        return process

    assert start("app.cli.main", "migrate").wait(30) == 0
    yield service, start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        process.wait(15)
    assert service.processes() == {}


def worker(start, queue):
    return start("worker", "--queue", queue, "--entry", ENTRY)


class TestParts:
    def test_job_of_a_stopped_worker_is_taken_by_another_at_once(self, parts):
        service, start = parts
        service.process = start("app.cli.main", "api")
        worker(start, "inspections")
        first = worker(start, "jobs")
        service.wait_ready()
        job_id = submit(service, "sleep=15")
        service.until(job_id, "running")
        worker(start, "jobs")
        wait_for(lambda: len(service.launchers()) == 2)
        time.sleep(3)
        time.sleep(2)
        began = time.monotonic()
        first.send_signal(signal.SIGTERM)
        wait_for(lambda: service.job(job_id)["attempt"] == 2, 3)
        print(f"taken over after {time.monotonic() - began:.2f} s")
        assert first.wait(5) == 0
        assert service.ended(job_id)["status"] == "succeeded"
        outcomes = rows(service, "SELECT outcome FROM attempts ORDER BY attempt")
        assert outcomes == [("handed_back",), ("succeeded",)]
        wait_for(lambda: service.scratch() == [])

    def test_worker_command_runs_both_queues_and_stops_both(self, parts):
        service, start = parts
        service.process = start("app.cli.main", "api")
        both = start("app.cli.main", "worker")
        service.wait_ready()
        assert len(service.find("-m worker", "--queue")) == 2
        both.send_signal(signal.SIGTERM)
        assert both.wait(10) == 0
        assert service.find("-m worker") == []
        assert not service.is_ready()

    def test_row_of_a_killed_worker_is_freed_by_the_reaper_of_another(self, parts):
        service, start = parts
        service.process = start("app.cli.main", "api")
        worker(start, "inspections")
        first = worker(start, "jobs")
        service.wait_ready()
        job_id = submit(service, "sleep=2")
        service.until(job_id, "running")
        worker(start, "jobs")
        first.kill()
        began = time.monotonic()
        job = service.ended(job_id, 60)
        print(f"ended {time.monotonic() - began:.0f} s after the kill")
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        wait_for(lambda: service.scratch() == [])
