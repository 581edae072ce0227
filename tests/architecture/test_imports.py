"""The rules about who may load what, where a static linter cannot see: plug-ins are found by name at run time."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "onnx", "onnxruntime", "onnx_ir", "safetensors", "numpy"}


def loaded_by(python: Path | str, module: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after importing `module`."""
    code = f"import json, sys, {module}; print(json.dumps(sorted(name.split('.')[0] for name in sys.modules)))"
    out = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(out.stdout))


class TestProcesses:
    @pytest.mark.parametrize("module", ["app.main", "app.cli.main"])
    def test_the_api_never_loads_the_numeric_stack(self, module: str) -> None:
        assert not loaded_by(sys.executable, module) & HEAVY

    def test_the_worker_process_leaves_torch_to_its_children(self) -> None:
        assert "torch" not in loaded_by(sys.executable, "worker.celery_app")

    @pytest.mark.parametrize("name", ["reopened", "latency", "layer_times"])
    def test_a_fresh_process_that_opens_files_brings_torch_only_where_one_needs_it(self, name: str) -> None:
        assert "torch" not in loaded_by(sys.executable, f"worker.compressor.evaluation.{name}")


@pytest.mark.slow
class TestInstallSet:
    def test_the_api_installs_and_imports_without_torch(self, tmp_path: Path) -> None:
        venv.create(tmp_path / "venv", with_pip=True)
        python = tmp_path / "venv/bin/python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True)
        listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True)
        assert not {row["name"].replace("-", "_") for row in json.loads(listed.stdout)} & HEAVY
        code = "import app.main, app.spec.reading; app.spec.reading.read_spec(None); import migrations"
        subprocess.run([str(python), "-c", code], check=True, cwd=tmp_path)
