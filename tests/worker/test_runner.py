"""Attempts from claim to end, with real child processes of a tiny engine, on both databases."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.tables import DatasetRow
from worker.children import CAN_FORK, clean_environment
from worker.launchers import LauncherKeeper
from worker.preparation import read_task
from worker.runner import run_item


@pytest.fixture(params=["exec", "fork"])
def starting(request, node, settings):
    """Both ways of starting a child."""
    if request.param == "fork":
        if not CAN_FORK:
            pytest.skip("the launcher forks on Linux alone")
        node.launcher = LauncherKeeper(node.entry, clean_environment(os.environ, 1, str(settings.work_dir)))
        node.launcher.start()


def scratch(node):
    return [p.name for p in node.settings.work_dir.iterdir()]


class TestRunItem:
    def test_job_succeeds(self, node, world, starting):
        job_id = world.job("plain")
        run_item(node, job_id)
        row = world.row(job_id)
        assert (row.status, row.attempt, row.error, row.progress, row.warnings) == ("succeeded", 1, None, 1.0, ["tiny"])
        assert row.started_at <= row.finished_at
        [artifact] = world.artifacts(job_id)
        assert world.bytes_of(artifact.sha256).endswith(b" smaller")
        events = world.events(job_id)
        assert [e.data["status"] for e in events if e.kind == "status"] == ["running", "succeeded"]
        assert {e.kind for e in events} == {"status", "progress", "metric"}
        assert [e.id for e in events] == list(range(1, len(events) + 1))
        [attempt] = world.attempts(job_id)
        assert (attempt.outcome, attempt.exit_code) == ("succeeded", 0)
        assert scratch(node) == []

    def test_second_message_is_a_no_op(self, node, world):
        job_id = world.job("plain")
        run_item(node, job_id)
        before = world.row(job_id)
        run_item(node, job_id)
        after = world.row(job_id)
        assert (after.attempt, after.last_event) == (before.attempt, before.last_event)

    def test_database_away_right_after_the_claim_costs_no_attempt(self, node, world, monkeypatch):
        failures = iter([OperationalError("SELECT", {}, Exception("the server closed the connection"))] * 2)

        def read_task_later(session, taken):
            if failure := next(failures, None):
                raise failure
            return read_task(session, taken)

        monkeypatch.setattr("worker.runner.read_task", read_task_later)
        job_id = world.job("plain")
        run_item(node, job_id)
        assert (world.row(job_id).status, world.row(job_id).attempt) == ("succeeded", 1)
        assert next(failures, None) is None

    def test_crash_fails_the_job_once(self, node, world, starting):
        job_id = world.job("crash=SIGSEGV")
        run_item(node, job_id)
        row = world.row(job_id)
        assert (row.status, row.attempt, row.error["code"], row.error["class"]) == (
            "failed",
            1,
            "engine_crashed",
            "user",
        )
        assert scratch(node) == []

    def test_foreign_kill_is_tried_three_times(self, node, world, starting):
        job_id = world.job("crash=SIGKILL")
        for _ in range(3):
            run_item(node, job_id)
        row = world.row(job_id)
        assert (row.status, row.attempt, row.error["code"], row.error["class"]) == (
            "failed",
            3,
            "worker_lost",
            "transient",
        )
        assert [a.outcome for a in world.attempts(job_id)] == ["child_killed"] * 3
        assert scratch(node) == []

    def test_foreign_kill_once_succeeds_at_the_second_attempt(self, node, world, starting):
        job_id = world.job("crash=SIGKILL once=1")
        run_item(node, job_id)
        assert world.row(job_id).status == "queued"
        run_item(node, job_id)
        assert (world.row(job_id).status, world.row(job_id).attempt) == ("succeeded", 2)
        assert scratch(node) == []

    def test_exception_in_the_engine_is_internal(self, node, world):
        job_id = world.job("raise")
        run_item(node, job_id)
        assert (world.row(job_id).error["code"], world.row(job_id).error["class"]) == ("internal_error", "internal")

    def test_endless_loop_meets_its_deadline(self, node, world, starting):
        job_id = world.job("spin", spec={"version": 1, "limits": {"wall_seconds": 1}})
        began = time.monotonic()
        run_item(node, job_id)
        assert world.row(job_id).error["code"] == "time_limit"
        assert time.monotonic() - began < 8

    def test_cancel_ends_in_seconds_and_keeps_the_best_checkpoint(self, node, world, starting):
        job_id = world.job("best sleep=60")
        thread = threading.Thread(target=run_item, args=(node, job_id))
        thread.start()
        world.until(job_id, "running")
        time.sleep(1)
        world.set(job_id, cancel_requested=True)
        began = time.monotonic()
        thread.join(20)
        assert time.monotonic() - began < 3
        assert world.row(job_id).status == "cancelled"
        [artifact] = world.artifacts(job_id)
        assert (artifact.kind, world.bytes_of(artifact.sha256)) == ("checkpoint", b"best so far")
        assert scratch(node) == []

    def test_stopping_worker_hands_back(self, node, world, starting):
        job_id = world.job("sleep=60")
        thread = threading.Thread(target=run_item, args=(node, job_id))
        thread.start()
        world.until(job_id, "running")
        time.sleep(1)
        node.stopping.set()
        thread.join(5)
        row = world.row(job_id)
        assert (row.status, row.worker) == ("queued", None)
        assert [a.outcome for a in world.attempts(job_id)] == ["handed_back"]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_too_much_memory_is_told(self, node, world, starting, monkeypatch):
        monkeypatch.setattr("worker.runner.memory_limit", lambda _: 200 << 20)
        job_id = world.job("memory=3000")
        run_item(node, job_id)
        assert (world.row(job_id).error["code"], world.row(job_id).error["class"]) == ("out_of_memory", "user")

    def test_gigabyte_of_output_is_swallowed(self, node, world):
        job_id = world.job("print=200")
        run_item(node, job_id)
        assert world.row(job_id).status == "succeeded"

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
    def test_what_the_engine_started_ends_with_it(self, node, world, starting):
        job_id = world.job("fork")
        run_item(node, job_id)
        time.sleep(0.2)
        assert world.row(job_id).status == "succeeded"
        assert not [p for p in _command_lines() if p == ["sleep", "600"]]

    def test_credentials_do_not_reach_the_child(self, monkeypatch, settings):
        monkeypatch.setenv("FEATHERWEIGHT_DATABASE_URL", "postgresql://secret")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert "secret" not in str(clean_environment(os.environ, 1, "home"))


class TestLauncher:
    @pytest.mark.slow
    @pytest.mark.skipif(not CAN_FORK, reason="the launcher forks on Linux alone")
    def test_what_it_imports_starts_no_thread(self, tmp_path):
        # A fork copies one thread: a lock that another one held stays locked for ever.
        code = f"""
import importlib, os
from worker.launcher import PRELOADED
for name in PRELOADED:
    importlib.import_module(name)
print(len(os.listdir("/proc/self/task")), os.listdir({str(tmp_path)!r}))
"""
        environment = clean_environment(os.environ, 2, str(tmp_path)) | {"PYTHONPATH": str(Path.cwd())}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[0] == "1 []"


class TestUploads:
    def test_model_becomes_ready_and_wakes_nobody_else(self, node, world):
        model_id = world.upload("plain")
        run_item(node, model_id)
        row = world.row(model_id)
        assert (row.status, row.inputs[0]["name"], row.graph_facts) == ("ready", "x", {"a": 1})
        assert node.storage.size(row.graph_sha256) == row.size_bytes

    def test_data_set_becomes_ready(self, node, world):
        dataset_id = world.upload("plain", kind=DatasetRow, file_format="npz")
        run_item(node, dataset_id)
        assert (world.row(dataset_id).status, world.row(dataset_id).splits) == ("ready", {"train": 10})

    def test_crashing_upload_is_rejected(self, node, world):
        model_id = world.upload("icrash=SIGABRT")
        run_item(node, model_id)
        assert (world.row(model_id).status, world.row(model_id).error["code"]) == ("rejected", "engine_crashed")
        assert scratch(node) == []

    def test_endless_upload_times_out(self, node, world, monkeypatch):
        monkeypatch.setattr("worker.preparation.INSPECTION_SECONDS", 1.0)
        model_id = world.upload("ispin")
        run_item(node, model_id)
        assert (world.row(model_id).status, world.row(model_id).error["code"]) == ("rejected", "inspection_timeout")

    def test_job_waits_for_its_model(self, node, world):
        model_id = world.upload("plain")
        job_id = world.job(model_id=model_id)
        run_item(node, job_id)
        assert (world.row(job_id).status, world.row(job_id).attempt) == ("queued", 0)
        run_item(node, model_id)
        run_item(node, job_id)
        assert world.row(job_id).status == "succeeded"

    def test_job_on_a_rejected_model_fails_with_its_code(self, node, world):
        model_id = world.upload("icrash=SIGABRT")
        job_id = world.job(model_id=model_id)
        run_item(node, model_id)
        run_item(node, job_id)
        assert (world.row(job_id).status, world.row(job_id).error["code"]) == ("failed", "engine_crashed")
        assert scratch(node) == []

    def test_torchscript_without_signature_is_converted_in_the_job(self, node, world):
        model_id = world.upload("plain", file_format="torchscript")
        run_item(node, model_id)
        assert (world.row(model_id).status, world.row(model_id).graph_sha256) == ("ready", None)
        dataset_id = world.upload("data", "ready", kind=DatasetRow, file_format="npz", fields=[
            {"name": "x", "dtype": "float32", "shape": [10, 4]}])  # fmt: skip
        job_id = world.job(model_id=model_id, dataset_id=dataset_id)
        run_item(node, job_id)
        row = world.row(job_id)
        assert (row.status, row.spec["inputs"][0]["shape"]) == ("succeeded", ["batch", 4])
        stages = [e.data["stage"] for e in world.events(job_id) if e.kind == "progress"]
        assert stages[:2] == ["starting", "converting"] and stages[-1] == "saving"

    def test_spec_that_cannot_be_completed_fails_the_job(self, node, world):
        model_id = world.upload("plain", file_format="torchscript")
        run_item(node, model_id)
        job_id = world.job(model_id=model_id)
        run_item(node, job_id)
        assert (world.row(job_id).status, world.row(job_id).error["code"]) == ("failed", "signature_needed")

    @pytest.mark.parametrize(("loss", "status"), [({}, "succeeded"), ({"hard": 0.3}, "failed")])
    def test_a_wish_is_told_from_a_default(self, node, world, loss, status):
        fields = [{"name": "x", "dtype": "float32", "shape": [10, 4]}]
        dataset_id = world.upload("data", "ready", kind=DatasetRow, file_format="npz", fields=fields)
        job_id = world.job(spec={"steps": [{"distill": {"loss": loss}}]}, dataset_id=dataset_id)
        run_item(node, job_id)
        row = world.row(job_id)
        assert row.status == status, row.error
        assert status == "succeeded" or row.error["code"] == "labels_needed"


def _command_lines():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace").split("\0")[:-1])
    return found
