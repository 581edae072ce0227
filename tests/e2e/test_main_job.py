"""The main job over HTTP, with everything that the service says computed again from the files, by other code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from examples import demo
from tests.e2e import jobs

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "version": 1,
    "preprocess": {"scale": 1 / 16},
    "steps": [{"prune": {"target": {"macs": "50%"}, "round_to": 4}}, {"distill": {"epochs": 2, "batch_size": 50}}],
    "outputs": ["onnx", "torchscript"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    demo.make_files(folder)
    scripted = torch.jit.load(str(folder / "digits.pt"))
    torch.jit.trace(scripted, torch.zeros(2, 1, 8, 8)).save(str(folder / "digits.trace.pt"))
    torch.jit.freeze(scripted.eval()).save(str(folder / "digits.frozen.pt"))
    return folder


@pytest.fixture(scope="module")
def images(files: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.load(files / "digits.npz")
    return data["x_test"].astype(np.float32) / 16, data["y_test"]


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        return torch.jit.load(str(path))(torch.from_numpy(images)).numpy()


def run(client: httpx.Client, model: Path, data: Path | None, spec: Any) -> dict[str, Any]:
    return jobs.run(client, demo.upload(client, "models", model)["id"], data, spec)


class TestEveryFormat:
    @pytest.mark.parametrize("name", ["digits.onnx", "digits.pt", "digits.trace.pt", "digits.frozen.pt"])
    def test_a_success_is_what_it_says(
        self, client: httpx.Client, files: Path, images: tuple[np.ndarray, np.ndarray], name: str, tmp_path: Path
    ) -> None:
        job = run(client, files / name, files / "digits.npz", SPEC)
        assert job["status"] == "succeeded", job["error"]
        made, result = jobs.fetch(client, job, tmp_path), job["result"]
        assert made.keys() == {"model.onnx", "model.pt", "weights.safetensors", "report.json", "manifest.json"}
        onnx.checker.check_model(str(made["model.onnx"]), full_check=True)
        before = logits(files / name, images[0])
        twins = [logits(made[part], images[0]) for part in ("model.onnx", "model.pt")]
        assert np.abs(twins[0] - twins[1]).max() < 1e-3 * np.abs(twins[0]).max()
        for found, stated in ((before, result["baseline"]), (twins[0], result["compressed"])):
            assert abs((found.argmax(-1) == images[1]).mean() - stated["accuracy"]) < 0.006
        agreement = (before.argmax(-1) == twins[0].argmax(-1)).mean()
        assert abs(agreement - result["compressed"]["agreement"]) < 0.006
        assert 0.4 < result["ratio"]["macs"] <= 0.5 and result["unverified_accuracy"] is False
        assert result["compressed"]["accuracy"] >= result["baseline"]["accuracy"] - 0.02
        assert result["verified"] == {"reloaded": True, "finite": True, "metric_recomputed": True}


class TestTheCut:
    def test_it_computes_what_the_original_does_without_those_channels(
        self, client: httpx.Client, files: Path, images: tuple[np.ndarray, np.ndarray], tmp_path: Path
    ) -> None:
        prune = {"criterion": "random", "target": {"macs": "60%"}, "recovery": "none"}
        job = run(client, files / "digits.onnx", files / "digits.npz", SPEC | {"steps": [{"prune": prune}], "seed": 7})
        assert job["status"] == "succeeded" or job["error"]["code"] == "output_collapsed", job["error"]
        made = jobs.fetch(client, job, tmp_path)
        report = json.loads(made["report.json"].read_text())
        assert report["exact"]
        masked = onnx.load(files / "digits.onnx")
        tensors = {tensor.name: tensor for tensor in masked.graph.initializer}
        for weight in report["weights"]:
            array = numpy_helper.to_array(tensors[weight["name"]]).copy()
            for axis in weight["zero"]:
                gone = np.setdiff1d(np.arange(array.shape[int(axis)]), weight["axes"][axis])
                np.moveaxis(array, int(axis), 0)[gone] = 0
            tensors[weight["name"]].CopyFrom(numpy_helper.from_array(array, weight["name"]))
        onnx.save(masked, tmp_path / "masked.onnx")
        want, got = logits(tmp_path / "masked.onnx", images[0]), logits(made["model.onnx"], images[0])
        original = logits(files / "digits.onnx", images[0])
        assert np.abs(want - got).max() < 1e-4 * np.abs(want).max()
        assert np.abs(original - got).max() > 1e-2 * np.abs(want).max()


class TestClearEnds:
    def test_no_data_at_all_is_enough(self, client: httpx.Client, files: Path) -> None:
        job = run(client, files / "digits.onnx", None, {"steps": [{"prune": {"target": {"macs": "80%"}}}]})
        assert job["status"] == "succeeded" or job["error"]["code"] == "output_collapsed", job["error"]
        assert any("data" in warning for warning in job["warnings"])

    def test_no_data_but_batchnorm_is_repaired_on_inputs_made_up(
        self, client: httpx.Client, files: Path, images: tuple[np.ndarray, np.ndarray], tmp_path: Path
    ) -> None:
        signature = [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
        spec = {"inputs": signature, "steps": [{"prune": {"target": {"macs": "25%"}}}]}
        job = run(client, files / "digits.pt", None, spec)
        assert job["status"] == "succeeded" and job["result"]["unverified_accuracy"] is True, job["error"]
        assert any("not verified" in warning for warning in job["warnings"])
        found = logits(jobs.fetch(client, job, tmp_path)["model.pt"], images[0])
        assert (found.argmax(-1) == images[1]).mean() > 0.9

    def test_a_target_out_of_reach_says_what_is_in_reach(self, client: httpx.Client, files: Path) -> None:
        job = run(
            client, files / "digits.onnx", files / "digits.npz", {"steps": [{"prune": {"target": {"params": 5}}}]}
        )
        assert (job["status"], job["error"]["code"]) == ("failed", "target_unreachable")
        assert job["error"]["class"] == "user"

    def test_a_network_that_crashes_its_process_is_told(self, client: httpx.Client, tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.pt"
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(bomb))
        deep = "(" * 200_000 + "x" + ")" * 200_000
        self._rewrite(
            bomb, lambda name, blob: blob.replace(b"return ", f"return {deep} or ".encode()) if ".py" in name else blob
        )
        with bomb.open("rb") as stream:
            answer = client.post("/v1/models", files={"file": ("bomb.pt", stream)})
        row = (
            client.get(f"/v1/models/{answer.json()['id']}", params={"wait": 60}).json()
            if answer.is_success
            else answer.json()
        )
        assert row["status"] in ("rejected", 422), row
        assert (row.get("error") or row)["code"] != "internal_error"

    @staticmethod
    def _rewrite(path: Path, change: Any) -> None:
        import zipfile

        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: change(info.filename, archive.read(info)) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, blob in parts.items():
                archive.writestr(name, blob)
