"""Small networks and data, made where they are needed: nothing is stored, nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from app.spec.checks import DatasetFacts, ModelFacts, complete_spec
from app.spec.schema import Spec
from worker.compressor.entry import run

NUM_CLASSES = 4


class SmallNet(nn.Module):
    """A stem, one residual block and a head over 8 × 8 pictures."""

    def __init__(self, width=16, num_outputs=NUM_CLASSES):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.fc1, self.fc2 = nn.Linear(width * 16, 32), nn.Linear(32, num_outputs)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def pictures(count, seed=0):
    """Noisy pictures of a bright quadrant each, as uint8, and which quadrant it is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, count)
    x = rng.integers(0, 140, (count, 1, 8, 8))
    for row, label in enumerate(labels):
        top, left = divmod(int(label), 2)
        x[row, 0, top * 4 : top * 4 + 4, left * 4 : left * 4 + 4] += 60
    return x.astype(np.uint8), labels.astype(np.int64)


PREPROCESS = {"scale": 1 / 255, "mean": [0.4], "std": [0.25]}
PRUNE = {"prune": {"target": {"macs": "50%"}}}
SPEC = {"task": "classification", "preprocess": PREPROCESS, "steps": [PRUNE]}


def trained(seed=0, epochs=6, **options):
    """A SmallNet that knows its pictures, in evaluation mode."""
    torch.manual_seed(seed)
    net = SmallNet(**options)
    x, y = pictures(800, seed)
    inputs, labels = (torch.from_numpy(x).float() / 255 - 0.4) / 0.25, torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for at in range(0, 800, 50):
            out = net(inputs[at : at + 50])
            loss = (
                F.cross_entropy(out, labels[at : at + 50])
                if out.shape[1] > 1
                else F.mse_loss(out[:, 0], labels[at : at + 50].float())
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def export(net, folder, name="net"):
    """The network as `name.onnx` (BatchNorm folded) and `name.pt` (scripted)."""
    torch.onnx.export(
        net, (torch.zeros(2, 1, 8, 8),), str(folder / f"{name}.onnx"), dynamo=False, input_names=["image"],
        output_names=["scores"], dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}}, opset_version=17,
    )  # fmt: skip
    torch.jit.script(net).save(str(folder / f"{name}.pt"))


def export_fixed(net, folder, name="fixed", batch=1):
    """The network as `name.onnx` that takes one sample (or `batch` samples) at a time."""
    torch.onnx.export(
        net,
        (torch.zeros(batch, 1, 8, 8),),
        str(folder / f"{name}.onnx"),
        dynamo=False,
        input_names=["image"],
        opset_version=13,
    )


def mix_samples(path):
    """Let each sample's answer depend a little on the other samples of its batch."""
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["apart" if name == output else name for name in node.output]
    share = onnx.numpy_helper.from_array(np.float32(0.001), "share")
    model.graph.initializer.append(share)
    model.graph.node.extend([
        onnx.helper.make_node("ReduceMean", ["apart"], ["mean"], axes=[0], keepdims=1),
        onnx.helper.make_node("Mul", ["mean", "share"], ["little"]),
        onnx.helper.make_node("Add", ["apart", "little"], [output]),
    ])  # fmt: skip
    onnx.save(model, path)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Attempt:
    """One attempt's folder, as the worker prepares it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events: list[dict] = []
        (folder / "input").mkdir(parents=True)

    def run(self, should_stop=lambda: False, **request):
        plain = {"id": "job_1", "attempt": 1, "threads": 1, "device": "cpu"} | request
        (self.folder / "request.json").write_text(json.dumps(plain))
        run(self.folder, self.events.append, should_stop)
        path = self.folder / "outcome.json"
        return json.loads(path.read_text()) if path.exists() else None

    def take(self, path, name):
        (self.folder / "input" / name).write_bytes(Path(path).read_bytes())
        return f"input/{name}"


def inspected(folder: Path, source: Path, signature=None):
    """The attempt that inspected a network, and its outcome."""
    attempt = Attempt(folder)
    form = "onnx" if source.suffix == ".onnx" else "torchscript"
    told = {
        "file": attempt.take(source, "source"),
        "format": form,
        "sha256": sha256(source),
        "size_bytes": source.stat().st_size,
        "name": source.name,
    }
    return attempt, attempt.run(kind="inspect_model", source=told, signature=signature)


def compressed(folder: Path, source: Path, data: Path | None, spec: dict, *, should_stop=lambda: False, **request):
    """Inspect the files and compress, as the service would: (attempt, outcome)."""
    fields = None
    if data is not None:
        reading = Attempt(folder / "data")
        told = {"file": reading.take(data, "data.npz"), "format": "npz", "sha256": sha256(data)}
        outcome = reading.run(kind="inspect_dataset", dataset=told)
        assert outcome["status"] == "ready", outcome
        fields = DatasetFacts(outcome["facts"]["fields"])
    form = "onnx" if source.suffix == ".onnx" else "torchscript"
    signature = None
    if form == "torchscript":
        first = complete_spec(Spec.model_validate(spec), ModelFacts(form, None), fields)
        signature = [entry.model_dump(mode="json") for entry in first.inputs]
    inspection, outcome = inspected(folder / "model", source, signature)
    assert outcome["status"] == "ready", outcome
    facts = outcome["facts"]
    full = complete_spec(Spec.model_validate(spec), ModelFacts(form, facts["inputs"]), fields)
    attempt = Attempt(folder / "job")
    (attempt.folder / "input/graph.json").write_text(json.dumps(facts["graph_facts"]))
    graph = {"file": attempt.take(inspection.folder / "output/graph.onnx", "graph.onnx"), "facts": "input/graph.json"}
    told = {
        "file": None,
        "format": form,
        "sha256": sha256(source),
        "size_bytes": source.stat().st_size,
        "name": source.name,
    }
    dataset = None
    if data is not None:
        dataset = {"file": attempt.take(data, "data.npz"), "format": "npz", "sha256": sha256(data)}
    given = {"checkpoints": str(folder / "checkpoints")} | request
    return attempt, attempt.run(
        should_stop,
        kind="compress",
        source=told,
        signature=signature,
        graph=graph,
        dataset=dataset,
        spec=full.as_json(),
        **given,
    )


def artifact(attempt, name):
    return attempt.folder / "output" / name
