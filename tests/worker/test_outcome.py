"""What a child says and leaves behind is checked like any other input."""

from __future__ import annotations

import json
import signal

import pytest

from worker.children import LAUNCHER_LOST
from worker.outcome import error_of, listed_files, needs_another_try, read_outcome
from worker.supervisor import Ending, memory_limit


def ended(code, reason="exited"):
    return Ending(reason, code, "")


class TestReadOutcome:
    @pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "ready"}', '{"status": "queued"}', '{"error": null}'])
    def test_what_makes_no_sense_is_no_outcome(self, tmp_path, text):
        (tmp_path / "outcome.json").write_text(text)
        assert read_outcome(tmp_path, is_job=True) is None

    def test_link_is_no_outcome(self, tmp_path):
        (tmp_path / "other").write_text('{"status": "succeeded"}')
        (tmp_path / "outcome.json").symlink_to(tmp_path / "other")
        assert read_outcome(tmp_path, is_job=True) is None


class TestListedFiles:
    def test_only_regular_files_of_output_under_plain_names(self, tmp_path):
        (tmp_path / "output").mkdir()
        (tmp_path / "output/model.onnx").write_text("x")
        (tmp_path / "secret").write_text("x")
        (tmp_path / "output/link").symlink_to(tmp_path / "secret")
        listed = [
            ("model.onnx", "output/model.onnx"), ("secret", "secret"), ("up", "output/../secret"), ("link", "output/link"),
            ("abs", "/etc/passwd"), ("../x", "output/model.onnx"), ("gone", "output/gone"),
        ]  # fmt: skip
        entries = [{"name": n, "file": f, "kind": "model", "format": "onnx"} for n, f in listed]
        (tmp_path / "outcome.json").write_text(json.dumps({"status": "succeeded", "artifacts": entries}))
        verdict = read_outcome(tmp_path, is_job=True)
        assert [entry["name"] for entry, _ in listed_files(tmp_path, verdict)] == ["model.onnx"]


class TestVerdicts:
    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
    def test_crash_is_the_networks(self, number):
        assert not needs_another_try(ended(-number))
        error = error_of(ended(-number), 1, is_job=True)
        assert (error["code"], error["class"]) == ("engine_crashed", "user")

    @pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, LAUNCHER_LOST, None])
    def test_foreign_kill_gets_another_try(self, code):
        assert needs_another_try(ended(code))

    def test_limits_are_told(self):
        assert error_of(ended(-9, "time_limit"), 1, is_job=True)["code"] == "time_limit"
        assert error_of(ended(-9, "time_limit"), 1, is_job=False)["code"] == "inspection_timeout"
        assert error_of(ended(-9, "out_of_memory"), 1, is_job=True)["code"] == "out_of_memory"
        assert error_of(ended(70), 1, is_job=True)["class"] == "internal"


def test_memory_is_shared_by_the_slots():
    assert memory_limit(2) == memory_limit(1) // 2 > 0
