"""A sensitivity job over HTTP: its files, its figures computed again by other code, and a prune job that goes by it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import httpx
import numpy as np
import onnxruntime
import pytest

from examples import demo
from tests.e2e import jobs

pytestmark = pytest.mark.slow

PREPROCESS = {"scale": 1 / 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    demo.make_files(folder)
    return folder


class TestSensitivity:
    def test_the_files_say_what_is_lost_and_a_prune_job_goes_by_it(
        self, client: httpx.Client, files: Path, tmp_path: Path
    ) -> None:
        model = demo.upload(client, "models", files / "digits.onnx")["id"]
        spec = {"preprocess": PREPROCESS, "steps": [{"sensitivity": {"tradeoff": ["50%"]}}]}
        job = jobs.run(client, model, files / "digits.npz", spec)
        assert job["status"] == "succeeded", job["error"]
        made = jobs.fetch(client, job, tmp_path)
        assert made.keys() == {"sensitivity.json", "sensitivity.svg", "tradeoff.svg", "report.json", "manifest.json"}
        answer = client.get(f"/v1/jobs/{job['id']}/artifacts/sensitivity.svg")
        assert answer.headers["content-type"] == "image/svg+xml"
        assert answer.headers["content-disposition"].startswith("attachment")
        assert ElementTree.fromstring(answer.content).tag.endswith("svg")
        found = json.loads(made["sensitivity.json"].read_text())
        data = np.load(files / "digits.npz")
        session = onnxruntime.InferenceSession(str(files / "digits.onnx"), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        test = session.run(None, {name: data["x_test"].astype(np.float32) / 16})[0]
        assert abs((test.argmax(-1) == data["y_test"]).mean() - job["result"]["baseline"]["accuracy"]) < 1e-9
        assert job["result"]["compressed"] is None
        assert found["whole"]["agreement"] == 1 and len(found["groups"]) == 3
        for group in found["groups"]:
            assert [point["ratio"] for point in group["points"]] == [0.25, 0.5, 0.75]
            assert group["points"][2]["divergence"] > group["points"][0]["divergence"] > 0
        metrics = client.get(f"/v1/jobs/{job['id']}/metrics").raise_for_status().text
        assert "accuracy_without_0.5" in metrics and "tradeoff_accuracy" in metrics
        prune = {"prune": {"target": {"macs": "50%"}, "allocation": "sensitivity"}}
        job = jobs.run(client, model, files / "digits.npz", {"preprocess": PREPROCESS, "steps": [prune]})
        assert job["status"] == "succeeded", job["error"]
        assert job["result"]["target"]["met"] and job["result"]["compressed"]["accuracy"] > 0.97

    def test_without_data_it_is_refused_at_once(self, client: httpx.Client, files: Path) -> None:
        model = demo.upload(client, "models", files / "digits.onnx")["id"]
        answer = client.post("/v1/jobs", json={"model": model, "spec": {"steps": [{"sensitivity": {}}]}})
        assert (answer.status_code, answer.json()["code"]) == (422, "data_needed")
        assert answer.json()["errors"][0]["pointer"] == "/spec/steps/0/sensitivity"

    def test_it_ends_soon_after_it_is_cancelled(self, client: httpx.Client, files: Path) -> None:
        model = demo.upload(client, "models", files / "digits.onnx")["id"]
        data = demo.upload(client, "datasets", files / "digits.npz")["id"]
        ratios = [share / 100 for share in range(6, 99, 6)]
        spec = {"preprocess": PREPROCESS, "seed": 5, "steps": [{"sensitivity": {"ratios": ratios}}] * 16}
        job = client.post("/v1/jobs", json={"model": model, "dataset": data, "spec": spec}).raise_for_status().json()
        while client.get(f"/v1/jobs/{job['id']}").json()["stage"] != "sensitivity":
            pass
        client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
        assert job["status"] == "cancelled"
