"""Files that need more than their bytes: a bundle with data outside, half precision, fixed arguments, named outputs."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.e2e import jobs

pytestmark = pytest.mark.slow

SPEC: dict[str, Any] = {
    "steps": [{"prune": {"criterion": "random", "target": {"params": "60%"}, "recovery": "none"}}],
    "outputs": ["onnx", "torchscript"],
    "seed": 3,
}


class Normed(nn.Module):
    """Convolutions with BatchNorm in front of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 5)
        for norm in (self.body[1], self.body[4]):  # exporters merge vectors that are equal
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.hidden(self.body(x).mean((2, 3))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Named(Normed):
    """The same, scaled by a number and cut short by a switch, with named outputs."""

    def forward(self, x: torch.Tensor, gain: float, short: bool = False) -> dict[str, torch.Tensor]:
        features = self.features(x) * gain
        if short:
            return {"features": features}
        return {"scores": self.head(features), "features": features}


def measured(net: nn.Module) -> nn.Module:
    """The network with statistics of its own in every BatchNorm."""
    net.train()
    for seed in range(3):
        net(*((samples(32, seed), 1.0) if isinstance(net, Named) else (samples(32, seed),)))
    return net.eval()


def samples(rows: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def exported(net: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    torch.onnx.export(
        net.to(dtype), (samples(2).to(dtype),), str(path), dynamo=False, opset_version=17,
        input_names=["x"], output_names=["scores"], dynamic_axes={"x": {0: "batch"}, "scores": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    return path


def data(folder: Path, dtype: Any) -> Path:
    np.savez(folder / "data.npz", x=samples(24).numpy().astype(dtype))
    return folder / "data.npz"


def run_onnx(path: Path, x: torch.Tensor) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})


def difference(wanted: Any, found: Any) -> float:
    wanted, found = (np.asarray(array).astype(np.float64) for array in (wanted, found))
    return float(np.abs(wanted - found).max() / np.abs(wanted).max())


def zeroed(tensors: dict[str, torch.Tensor], report: dict[str, Any]) -> None:
    """Set what the report says was removed to zero."""
    for weight in report["weights"]:
        for axis in weight["zero"]:
            tensor = tensors[weight["name"]]
            gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), weight["axes"][axis])
            tensor.index_fill_(int(axis), torch.from_numpy(gone), 0)


class TestBundle:
    def test_data_outside_the_file_comes_along_and_batchnorm_is_folded_on_the_way_out(
        self, client: httpx.Client, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        net = measured(Normed())
        proto = onnx.load(exported(net, tmp_path / "net.onnx"))
        onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=64)
        with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as bundle:
            for name in ("big.onnx", "big.data"):
                bundle.write(tmp_path / name, name)
        model = jobs.upload(client, tmp_path / "bundle.zip")
        assert (model["format"], model["num_params"]) == ("onnx", sum(p.numel() for p in net.parameters()))
        job = jobs.run(client, model["id"], data(tmp_path, np.float32), SPEC | {"fold_batchnorm": True})
        assert job["status"] == "succeeded", job["error"]
        made = jobs.fetch(client, job, tmp_path)
        result = onnx.load(made["model.onnx"])
        assert {"BatchNormalization"} == {n.op_type for n in proto.graph.node} - {n.op_type for n in result.graph.node}
        assert not [name for name in torch.jit.load(str(made["model.pt"])).state_dict() if "running" in name]
        x = samples(7)
        zeroed(net.state_dict(), json.loads(made["report.json"].read_text()))
        with torch.no_grad():
            wanted, twin = net(x), torch.jit.load(str(made["model.pt"]))(x)
        assert difference(wanted, run_onnx(made["model.onnx"], x)[0]) < 1e-4
        assert difference(wanted, twin) < 1e-4
        assert difference(run_onnx(tmp_path / "net.onnx", x)[0], twin) > 1e-2


class TestHalfPrecision:
    def test_a_half_onnx_file_stays_half(self, client: httpx.Client, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = jobs.upload(client, exported(measured(Normed()), tmp_path / "half.onnx", torch.float16))
        assert [port["dtype"] for port in model["inputs"] + model["outputs"]] == ["float16", "float16"]
        job = jobs.run(client, model["id"], data(tmp_path, np.float16), SPEC)
        assert job["status"] == "succeeded", job["error"]
        made = jobs.fetch(client, job, tmp_path)
        weights = [t for t in onnx.load(made["model.onnx"]).graph.initializer if len(t.dims) > 1]
        assert weights and all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)
        x = samples(7).half()
        found, twin = run_onnx(made["model.onnx"], x)[0], torch.jit.load(str(made["model.pt"]))(x)
        assert found.dtype == np.float16 and twin.dtype == torch.float16
        assert difference(found, twin.detach()) < 1e-2
        assert job["result"]["verified"] == {"reloaded": True, "finite": True, "metric_recomputed": True}


class TestScripted:
    def test_fixed_arguments_named_outputs_and_half_precision_are_given_back(
        self, client: httpx.Client, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        path = tmp_path / "named.pt"
        torch.jit.script(measured(Named()).half()).save(str(path))
        inputs = [{"name": "x", "dtype": "float16", "shape": ["batch", 3, 8, 8]}, {"name": "gain", "value": 0.5}]
        model = jobs.upload(client, path, inputs)
        assert [port["name"] for port in model["inputs"]] == ["x"] and len(model["outputs"]) == 2
        job = jobs.run(client, model["id"], data(tmp_path, np.float16), SPEC)
        assert job["status"] == "succeeded", job["error"]
        made = jobs.fetch(client, job, tmp_path)
        original, masked, small = (torch.jit.load(str(p)) for p in (path, path, made["model.pt"]))
        zeroed(masked.state_dict(), json.loads(made["report.json"].read_text()))
        x = samples(7).half()
        with torch.no_grad():
            whole, wanted, found = original(x, 0.5), masked(x, 0.5), small(x, 0.5)
        assert found.keys() == wanted.keys() == {"scores", "features"}
        assert torch.equal(small(x)["scores"], found["scores"]), "what was fixed is the default"
        with pytest.raises(torch.jit.Error, match="gain"):
            small(x, 0.7)
        for name, twin in zip(found, run_onnx(made["model.onnx"], x), strict=True):
            assert found[name].dtype == torch.float16
            assert difference(found[name], twin) < 1e-2
        assert difference(wanted["scores"], found["scores"]) < 1e-2
        assert difference(whole["scores"], found["scores"]) > 5e-2
