"""Faults of the processes around the engine, which is a tiny one here that only sleeps."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.queue import Publisher
from app.settings import Settings
from tests.faults.service import ROOT, OneAtATime, wait_for

VICTIMS = {
    "launcher": ("worker.launcher",),
    "worker": ("-m worker", "--queue jobs"),
    "inspector": ("-m worker", "--queue inspections"),
    "broker": ("--unixsocket",),
    "api": ("app.cli.main", "api"),
}


def submit(service, name="plain"):
    model_id = service.upload("models", "net.onnx", b"\x08\x07" + secrets.token_bytes(64), name)
    return service.call("POST", "/v1/jobs", {"model": model_id})["id"]


def rows(service, query, *values):
    with sqlite3.connect(service.data_dir / "featherweight.db") as database:
        return database.execute(query, values).fetchall()


class TestServe:
    def test_stops_in_seconds_and_leaves_nothing(self, make_service):
        service = make_service()
        folder = service.socket_folder()
        job_id = submit(service, "sleep=60")
        service.until(job_id, "running")
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 5
        assert service.processes() == {} and not folder.exists()
        assert rows(service, "SELECT status, attempt FROM jobs") == [("queued", 1)]

    def test_job_handed_back_at_sigterm_goes_on_after_the_start(self, make_service):
        service = make_service()
        job_id = submit(service, "sleep=3")
        service.until(job_id, "running")
        service.stop()
        service.start()
        job = service.ended(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        assert [r[0] for r in rows(service, "SELECT outcome FROM attempts ORDER BY attempt")] == [
            "handed_back",
            "succeeded",
        ]
        wait_for(lambda: service.scratch() == [])

    def test_killed_serve_takes_everything_along_and_its_job_goes_on(self, make_service):
        service = make_service()
        folder = service.socket_folder()
        job_id = submit(service, "fork sleep=3")
        service.until(job_id, "running")
        wait_for(lambda: service.engines(job_id))
        assert service.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_for(lambda: service.processes() == {}, 3)
        wait_for(lambda: not folder.exists(), 3)
        service.start()
        job = service.ended(job_id, 20)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        wait_for(lambda: service.scratch() == [])

    def test_second_serve_on_the_same_folder_is_refused(self, make_service):
        service = make_service()
        environment = service.environment | {"FEATHERWEIGHT_PORT": "0"}
        command = [sys.executable, "-m", "app.cli.main", "serve"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert (
            done.returncode == 1 and "another `featherweight serve`" in done.stderr and "Traceback" not in done.stderr
        )
        assert service.is_ready()

    def test_busy_port_is_told(self, make_service, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            environment = os.environ | {"FEATHERWEIGHT_DATA_DIR": str(tmp_path / "other")}
            command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(taken.getsockname()[1])]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False
            )
        assert done.returncode == 1 and "is taken by another program" in done.stderr and "Traceback" not in done.stderr

    def test_two_services_run_side_by_side(self, make_service):
        one, two = make_service("one"), make_service("two")
        jobs = [(service, submit(service, "sleep=1")) for service in (one, two)]
        assert [service.ended(job_id)["status"] for service, job_id in jobs] == ["succeeded"] * 2
        one.stop()
        assert two.is_ready()

    @pytest.mark.parametrize("victim", VICTIMS)
    def test_killed_process_is_there_again_within_seconds(self, make_service, victim):
        service = make_service()
        [pid] = service.find(*VICTIMS[victim])
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: any(p != pid for p in service.find(*VICTIMS[victim])))
        assert time.monotonic() - began < 2
        service.wait_ready(20)
        assert service.ended(submit(service))["status"] == "succeeded"


class TestJob:
    def test_begins_at_once_on_an_idle_worker(self, make_service):
        service = make_service()
        model_id = service.upload("models", "net.onnx", b"\x08\x07" + secrets.token_bytes(64), "plain")
        waits = []
        for _ in range(10):
            began = time.monotonic()
            job_id = service.call("POST", "/v1/jobs", {"model": model_id})["id"]
            service.until(job_id, "running", "succeeded")
            waits.append(time.monotonic() - began)
            service.ended(job_id)
        print("submit to running, s:", [round(w, 3) for w in sorted(waits)])
        assert sorted(waits)[5] < 0.3

    def test_frozen_worker_loses_its_child_and_its_row_and_writes_nothing(self, make_service):
        service = make_service()
        job_id = submit(service, "sleep=70")
        service.until(job_id, "running")
        [child] = wait_for(lambda: service.engines(job_id))
        [worker] = service.find("-m worker", "--queue jobs")
        with OneAtATime(service, job_id) as watch:
            began = time.monotonic()
            os.kill(worker, signal.SIGSTOP)
            wait_for(lambda: child not in service.engines(job_id), 35)
            assert time.monotonic() - began > 15
            wait_for(lambda: service.job(job_id)["status"] == "queued", 30)
            os.kill(worker, signal.SIGCONT)
            job = service.until(job_id, "running", seconds=30)
            assert job["attempt"] == 2
        assert watch.most == 1
        service.call("POST", f"/v1/jobs/{job_id}/cancel")
        assert service.ended(job_id, 10)["status"] == "cancelled"
        outcomes = rows(service, "SELECT outcome FROM attempts ORDER BY attempt")
        assert outcomes == [("worker_lost",), ("cancelled",)]

    def test_duplicate_and_late_messages_change_nothing(self, make_service):
        service = make_service()
        url = f"redis+socket://{service.socket_folder()}/broker.sock"
        publisher = Publisher(Settings(broker_url=url))
        job_id = submit(service, "sleep=1")
        for _ in range(20):
            assert publisher.send(job_id)
        job = service.ended(job_id)
        for _ in range(20):
            assert publisher.send(job_id)
        assert service.ended(submit(service))["status"] == "succeeded"
        assert (job["status"], service.job(job_id)) == ("succeeded", job)
        assert job["attempt"] == 1

    def test_queued_jobs_survive_a_broker_that_comes_back_empty(self, make_service):
        service = make_service()
        jobs = [submit(service, "sleep=1") for _ in range(4)]
        service.until(jobs[0], "running")
        [broker] = service.find("--unixsocket")
        os.kill(broker, signal.SIGKILL)
        ended = [service.ended(job_id, 60) for job_id in jobs]
        assert [(job["status"], job["attempt"]) for job in ended] == [("succeeded", 1)] * 4

    def test_cancel_against_completion_has_one_winner(self, make_service):
        service = make_service()
        ends = []
        for i in range(8):
            job_id = submit(service, f"sleep={0.2 + i * 0.02}")
            service.until(job_id, "running", "succeeded")
            time.sleep(0.25)
            try:
                service.call("POST", f"/v1/jobs/{job_id}/cancel")
                was_taken = True
            except ValueError as error:
                assert " 409 " in str(error)
                was_taken = False
            job = service.ended(job_id, 20)
            events = service.call("GET", f"/v1/jobs/{job_id}/events")["data"]
            finals = [e for e in events if e["event"] == "status" and e["data"]["status"] in ("succeeded", "cancelled")]
            artifacts = service.call("GET", f"/v1/jobs/{job_id}/artifacts")["data"]
            assert len(finals) == 1 and finals[0]["data"]["status"] == job["status"]
            assert len(artifacts) == (job["status"] == "succeeded")
            ends.append((was_taken, job["status"]))
        print(ends)
        assert all(status == "cancelled" for was_taken, status in ends if was_taken)

    def test_write_lock_of_fifteen_seconds_costs_no_attempt(self, make_service):
        service = make_service()
        job_id = submit(service, "sleep=18")
        service.until(job_id, "running")
        time.sleep(1)
        with sqlite3.connect(service.data_dir / "featherweight.db", isolation_level=None) as database:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(15)
            database.execute("COMMIT")
        job = service.ended(job_id, 60)
        assert (job["status"], job["attempt"]) == ("succeeded", 1)


def test_idle_service_costs_under_two_percent_of_a_core(make_service):
    service = make_service()
    time.sleep(8)  # imports and first rounds

    def ticks():
        total = 0
        for pid in service.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total

    before, began = ticks(), time.monotonic()
    time.sleep(20)
    share = (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)
    print(f"idle: {share:.2%} of one core")
    assert share < 0.02
