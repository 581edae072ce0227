"""What the asking process makes of the end of the other one."""

import signal
import subprocess
import sys

import pytest

from worker.compressor.errors import ExportError
from worker.compressor.evaluation.isolated import ask

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
FAILED = "raise SystemExit('there is no such file')"


@pytest.fixture
def module(tmp_path, monkeypatch):
    def make(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return name

    return make


def test_what_ends_by_itself_is_an_export_error_with_its_last_line(module, tmp_path):
    with pytest.raises(ExportError, match="there is no such file"):
        ask(module("failing", FAILED), {}, tmp_path)


def test_what_is_killed_takes_the_asking_process_with_it(module, tmp_path):
    asking = f"""
from pathlib import Path
from worker.compressor.evaluation.isolated import ask
ask("{module("killed", KILLED)}", {{}}, Path("{tmp_path}"))
"""
    assert subprocess.run([sys.executable, "-c", asking], check=False).returncode == -signal.SIGKILL
