"""Every command of the documents is run, as a newcomer would: the demo, then the README's lines on the demo's files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import demo

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, str(ROOT / "examples/demo.py"), "--folder", str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
    return folder, out.stdout


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with demo.service(tmp_path_factory.mktemp("service") / "data") as client:
        yield str(client.base_url).rstrip("/")


class TestDemo:
    def test_both_formats_come_back_smaller_and_as_good(self, demo_output: tuple[Path, str]) -> None:
        folder, printed = demo_output
        assert (folder / "small-onnx/model.onnx").exists()
        assert (folder / "small-pt/model.pt").exists()
        shares = [float(line.split()[-1]) for line in printed.splitlines() if line.strip().startswith("MACs")]
        assert len(shares) == 2
        assert all(0.4 < share <= 0.5 for share in shares)
        found = [line.split() for line in printed.splitlines() if "accuracy, run here" in line]
        assert all(float(line[-2]) >= float(line[-3]) - 0.02 for line in found)

    def test_the_service_has_left_nothing_running(self, demo_output: tuple[Path, str]) -> None:
        folder, _ = demo_output
        commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        assert not [c for c in commands if str(folder).encode() in c]


class TestReadme:
    @pytest.mark.parametrize("number", range(len(blocks("README.md", "sh"))))
    def test_the_lines_run(self, number: int, demo_output: tuple[Path, str], base_url: str, tmp_path: Path) -> None:
        shutil.copy(demo_output[0] / "digits.onnx", tmp_path / "model.onnx")
        shutil.copy(demo_output[0] / "digits.npz", tmp_path / "data.npz")
        (tmp_path / "spec.yaml").write_text(blocks("README.md", "yaml")[0])
        script = blocks("README.md", "sh")[number].replace("http://127.0.0.1:8000", base_url)
        out = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert out.returncode == 0, out.stdout + out.stderr
        assert '"code"' not in out.stdout or '"status":4' not in out.stdout, out.stdout

    def test_the_network_that_comes_back_runs(
        self, demo_output: tuple[Path, str], base_url: str, tmp_path: Path
    ) -> None:
        import numpy as np
        import onnxruntime

        command = ["curl", "-sS", "--fail-with-body", "-L", "-F", f"model=@{demo_output[0] / 'digits.onnx'}"]
        subprocess.run(
            [*command, "-o", str(tmp_path / "small.onnx"), f"{base_url}/v1/compress"], check=True, timeout=120
        )
        session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
        assert session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})[0].shape == (3, 10)

    def test_make_serve_prints_lines_that_the_service_takes(self) -> None:
        text = (ROOT / "docs/curl.txt").read_text()
        assert text.count("http://127.0.0.1:8000/v1/") == len(re.findall(r"^    curl ", text, re.MULTILINE))
        paths = {re.sub(r"(mdl|dst|job)_….*", r"\1", url) for url in re.findall(r":8000(/v1/\S+)", text)}
        assert {"/v1/compress", "/v1/models/", "/v1/datasets/", "/v1/jobs"} <= paths

    def test_the_console_lines_are_make_targets(self) -> None:
        targets = re.findall(r"^\$ make (\S+)$", "".join(blocks("README.md", "console")), re.MULTILINE)
        assert targets == ["demo", "test"]
        for target in [*targets, "serve", "install", "faults", "catalog", "format", "help"]:
            out = subprocess.run(
                ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False
            )
            assert out.returncode == 0, out.stderr
