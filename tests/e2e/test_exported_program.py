"""An exported program (`.pt2`) over HTTP: taken in, cut, and given back to be called as its author calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from examples import demo
from tests.e2e import jobs

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "steps": [{"prune": {"criterion": "random", "target": {"params": "60%"}, "recovery": "none"}}],
    "outputs": ["exported_program", "onnx"],
    "seed": 3,
}
#: What a user does with the file, in a process that knows nothing else.
READER = """
import json, sys, torch
program = torch.export.load(sys.argv[1])
call, feeds = program.module(), torch.load(sys.argv[2])
torch.save([call(image, 0.5, extra=extra) for image, extra in feeds], sys.argv[3])
signature = program.module_call_graph[0].signature
json.dump({"names": signature.forward_arg_names, "weights": {n: list(t.shape) for n, t in program.state_dict.items()},
           "loaded": [m for m in sys.modules if m.startswith(("worker", "app"))]}, sys.stdout)
"""


class TwoInputs(nn.Module):
    """An image and a vector in, a fixed number between them; named and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.body, self.mix = nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.Linear(16 + 6, 20)
        self.scores, self.place = nn.Linear(20, 5), nn.Linear(20, 4)

    def forward(self, image: torch.Tensor, gain: float, *, extra: torch.Tensor) -> dict[str, Any]:
        x = torch.relu(self.body(self.stem(image))).mean((2, 3)) * gain
        x = torch.relu(self.mix(torch.cat([x, extra], 1)))
        return {"scores": self.scores(x), "more": (self.place(x), [x.sum(1)])}


def samples(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, 8, 8, generator=generator), torch.randn(rows, 6, generator=generator)


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path, (image, extra) = tmp_path_factory.mktemp("program") / "two.pt2", samples(2)
    rows = Dim("rows")
    shapes = {"image": {0: rows}, "gain": None, "extra": {0: rows}}
    program = torch.export.export(TwoInputs().eval(), (image, 0.5), {"extra": extra}, dynamic_shapes=shapes)
    torch.export.save(program, path)
    image, extra = samples(24)
    np.savez(path.with_name("data.npz"), image=image.numpy(), extra=extra.numpy())
    return path


@pytest.fixture(scope="module")
def model(client: httpx.Client, uploaded: Path) -> dict[str, Any]:
    return demo.upload(client, "models", uploaded)


@pytest.fixture(scope="module")
def ended(client: httpx.Client, model: dict[str, Any], uploaded: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    job = jobs.run(client, model["id"], uploaded.with_name("data.npz"), SPEC)
    assert job["status"] == "succeeded", job["error"]
    return job, jobs.fetch(client, job, uploaded.parent)


@pytest.fixture(scope="module")
def read(ended: tuple[dict[str, Any], dict[str, Path]], uploaded: Path) -> tuple[dict[str, Any], list[Any]]:
    """What a clean process finds in the downloaded file, and what it computes with 1, 2 and 7 rows."""
    feeds, made = uploaded.with_name("feeds.pt"), uploaded.with_name("made.pt")
    torch.save([samples(rows) for rows in (1, 2, 7)], feeds)
    command = [sys.executable, "-I", "-c", READER, str(ended[1]["model.pt2"]), str(feeds), str(made)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/")
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout), torch.load(made)


def masked(uploaded: Path, report: dict[str, Any] | None) -> Any:
    """The uploaded program, with what the report says was removed set to zero."""
    program = torch.export.load(uploaded)
    for weight in report["weights"] if report else ():
        tensor = program.state_dict[weight["name"]].data
        for axis in weight["zero"]:
            gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), weight["axes"][axis])
            tensor.index_fill_(int(axis), torch.from_numpy(gone), 0)
    return program.module()


def largest_difference(wanted: Any, found: Any) -> float:
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


class TestUpload:
    def test_the_file_says_everything_itself(self, model: dict[str, Any]) -> None:
        assert (model["format"], model["status"]) == ("exported_program", "ready")
        assert [(port["name"], port["shape"]) for port in model["inputs"]] == [
            ("image", ["batch", 3, 8, 8]),
            ("extra", ["batch", 6]),
        ]
        assert [port["name"] for port in model["outputs"]] == ["scores", "more_0", "more_1_0"]
        assert model["num_params"] == sum(p.numel() for p in TwoInputs().parameters())

    def test_layers_are_called_by_module_path(self, client: httpx.Client, model: dict[str, Any]) -> None:
        rows = client.get(f"/v1/models/{model['id']}/layers").raise_for_status().json()["data"]
        assert [row["name"] for row in rows] == ["stem.0", "stem.1", "body", "mix", "scores", "place"]

    def test_a_program_with_a_pickle_in_it_is_refused(
        self, client: httpx.Client, uploaded: Path, tmp_path: Path
    ) -> None:
        import zipfile

        with zipfile.ZipFile(uploaded) as source, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as target:
            for name in source.namelist():
                blob = source.read(name)
                target.writestr(name, blob.replace(b'"use_pickle": false', b'"use_pickle": true'))
        with (tmp_path / "bad.pt2").open("rb") as stream:
            row = client.post("/v1/models", files={"file": ("bad.pt2", stream)}).raise_for_status().json()
        row = client.get(f"/v1/models/{row['id']}", params={"wait": 60}).json()
        assert (row["status"], row["error"]["code"]) == ("rejected", "forbidden_pickle")


class TestResult:
    def test_it_is_called_as_the_upload_is_in_a_clean_process(
        self, read: tuple[dict[str, Any], list[Any]], uploaded: Path
    ) -> None:
        facts, made = read
        original = masked(uploaded, None)
        assert facts["names"] == ["image", "gain", "extra"] and not facts["loaded"]
        for rows, found in zip((1, 2, 7), made, strict=True):
            image, extra = samples(rows)
            wanted = original(image, 0.5, extra=extra)
            assert pytree.tree_structure(wanted) == pytree.tree_structure(found)
            assert [t.shape for t in pytree.tree_leaves(wanted)] == [t.shape for t in pytree.tree_leaves(found)]

    def test_it_computes_what_the_upload_does_without_those_channels(
        self, ended: tuple[dict[str, Any], dict[str, Path]], read: tuple[dict[str, Any], list[Any]], uploaded: Path
    ) -> None:
        report = json.loads(ended[1]["report.json"].read_text())
        image, extra = samples(7)
        with torch.no_grad():
            wanted, whole = (masked(uploaded, r)(image, 0.5, extra=extra) for r in (report, None))
        assert report["exact"] and report["weights"]
        assert largest_difference(wanted, read[1][-1]) < 1e-5
        assert largest_difference(whole, read[1][-1]) > 1e-2

    def test_weights_keep_their_names_and_lose_what_the_report_says(
        self, ended: tuple[dict[str, Any], dict[str, Path]], read: tuple[dict[str, Any], list[Any]], uploaded: Path
    ) -> None:
        before = {name: list(t.shape) for name, t in torch.export.load(uploaded).state_dict.items()}
        wanted = {name: shape for name, shape in before.items() if "num_batches" not in name}
        for weight in json.loads(ended[1]["report.json"].read_text())["weights"]:
            for axis, kept in weight["axes"].items():
                wanted[weight["name"]][int(axis)] = len(kept)
        assert read[0]["weights"] == wanted

    def test_the_onnx_file_agrees(
        self, ended: tuple[dict[str, Any], dict[str, Path]], read: tuple[dict[str, Any], list[Any]]
    ) -> None:
        session = onnxruntime.InferenceSession(str(ended[1]["model.onnx"]), providers=["CPUExecutionProvider"])
        image, extra = samples(7)
        found = session.run(None, {"image": image.numpy(), "extra": extra.numpy()})
        assert [port.name for port in session.get_outputs()] == ["scores", "more_0", "more_1_0"]
        assert largest_difference(read[1][-1], [torch.from_numpy(array) for array in found]) < 1e-5
        parity = ended[0]["result"]["parity"]
        assert parity["onnx"] < 1e-5 and parity["exported_program"] < 1e-5

    def test_a_curl_line_gives_the_format_that_came_in(
        self, client: httpx.Client, uploaded: Path, tmp_path: Path
    ) -> None:
        with uploaded.open("rb") as stream:
            answer = client.post("/v1/compress", files={"model": ("two.pt2", stream)}).raise_for_status()
        (tmp_path / "small.pt2").write_bytes(answer.content)
        image, extra = samples(3)
        made = torch.export.load(tmp_path / "small.pt2").module()(image, 0.5, extra=extra)
        assert made["scores"].shape == (3, 5)
