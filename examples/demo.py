"""The main job, for real: train a small network on scikit-learn's digits, compress it over HTTP, open what comes back.

    python examples/demo.py [--folder demo-output]

Starts `featherweight serve` on a free port with a data folder of its own, uploads the network as ONNX and as TorchScript,
prunes each to half of its multiply-accumulates, distils it from the original, downloads the results, runs them in
plain onnxruntime and plain torch, and prints what was gained and what was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

SPEC = {
    "version": 1,
    "task": "classification",
    "preprocess": {"scale": 1 / 16},
    "steps": [
        {"prune": {"criterion": "l1", "target": {"macs": "50%"}}},
        {"distill": {"epochs": 5, "batch_size": 50}},
    ],
    "seed": 0,
}
ENDED = {"succeeded", "failed", "infeasible", "cancelled"}


class DigitsNet(nn.Module):
    """A CNN of 85 thousand parameters for 8 × 8 images: two convolutions with BatchNorm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.fc1, self.fc2 = nn.Linear(64 * 16, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def make_files(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Train the network, write it and the data into `folder`; returns the held-out images and labels."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].reshape(-1, 1, 8, 8).astype(np.uint8), y[order].astype(np.int64)
    np.savez(folder / "digits.npz", x_train=x[:1400], y_train=y[:1400], x_test=x[1400:], y_test=y[1400:])
    net, images, labels = DigitsNet(), torch.from_numpy(x[:1400]).float() / 16, torch.from_numpy(y[:1400])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(12):
        for rows in torch.randperm(1400).split(50):
            loss = functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    # Both exporters below are old, and what people's files come from.
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.onnx.export(
        net, (images[:2],), str(folder / "digits.onnx"), dynamo=False,
        input_names=["image"], output_names=["logits"], dynamic_axes=axes, opset_version=17,
    )  # fmt: skip
    torch.jit.script(net).save(str(folder / "digits.pt"))
    return x[1400:].astype(np.float32) / 16, y[1400:]


@contextlib.contextmanager
def service(data_dir: Path) -> Iterator[httpx.Client]:
    """A running `featherweight serve` on a free port; stopped on the way out."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("featherweight")),
        "serve",
        "--port",
        str(port),
        "--data-dir",
        str(data_dir),
    ]
    log = data_dir.with_suffix(".log")
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
            await_ready(client, process, log)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def await_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once `/readyz` says so; raises when the service stops or takes more than a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the service did not start; see {log}")


def upload(client: httpx.Client, collection: str, path: Path) -> dict[str, Any]:
    """Upload one file and wait until it has been inspected."""
    with path.open("rb") as stream:
        row = client.post(f"/v1/{collection}", files={"file": (path.name, stream)}).raise_for_status().json()
    row = client.get(f"/v1/{collection}/{row['id']}", params={"wait": 60}).raise_for_status().json()
    if row["status"] != "ready":
        raise SystemExit(f"{path.name} was refused: {row['error']}")
    return row


def follow(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """Print the job's live events until it ends; returns the ended job."""
    headers, width = {"Accept": "text/event-stream"}, 40
    with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers, timeout=300) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:") and "progress" in (event := json.loads(line[5:])):
                done = round(event["progress"] * width)
                print(f"\r  [{'#' * done}{'.' * (width - done)}] {event.get('stage') or '':<12}", end="", flush=True)
    print()
    job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).raise_for_status().json()
    if job["status"] != "succeeded":
        raise SystemExit(f"the job ended {job['status']}: {job['error']}")
    return job


def download(client: httpx.Client, job: dict[str, Any], folder: Path) -> Path:
    """Fetch every artifact of a job; returns the path of the compressed network."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in client.get(f"/v1/jobs/{job['id']}/artifacts").raise_for_status().json()["data"]:
        (folder / row["name"]).write_bytes(client.get(row["url"]).raise_for_status().content)
    return next(folder.glob("model.*"))


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the held-out images that the network in `path` gets right, run without any of our code."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        logits = session.run(None, {session.get_inputs()[0].name: images})[0]
    else:
        with torch.no_grad():
            logits = torch.jit.load(str(path))(torch.from_numpy(images)).numpy()
    return float((logits.argmax(-1) == labels).mean())


def print_table(name: str, job: dict[str, Any], proven: tuple[float, float]) -> None:
    """Before and after, from the job's result and from our own run of both files."""
    before, after = job["result"]["baseline"], job["result"]["compressed"]
    rows = [(label, before[key], after[key], ",.0f") for label, key in (("parameters", "num_params"), ("MACs", "macs"))]
    form = next(iter(before["size_bytes"]))
    rows.append((f"bytes ({form})", before["size_bytes"][form], after["size_bytes"][form], ",.0f"))
    for old, new in zip(before["latency_ms"], after["latency_ms"], strict=True):
        rows.append((f"latency, batch {old['batch']} (ms)", old["min"], new["min"], ".3f"))
    rows.append(("accuracy, as reported", before["accuracy"], after["accuracy"], ".4f"))
    rows.append(("accuracy, run here", *proven, ".4f"))
    print(f"\n  {name:<26}{'before':>12}{'after':>12}{'ratio':>8}")
    for label, old, new, form in rows:
        print(f"  {label:<26}{old:>12{form}}{new:>12{form}}{new / old:>8.2f}")


def main() -> None:
    """Run the whole of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("demo-output"), help="where files, service data and results go"
    )
    folder: Path = parser.parse_args().folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print("Training a small network on scikit-learn's digits …")
    images, labels = make_files(folder)
    print("Starting API and worker on the embedded default …")
    with service(folder / "service") as client:
        data = upload(client, "datasets", folder / "digits.npz")
        for source in (folder / "digits.onnx", folder / "digits.pt"):
            network = upload(client, "models", source)
            body = {"model": network["id"], "dataset": data["id"], "spec": SPEC, "name": source.name}
            job = client.post("/v1/jobs", json=body).raise_for_status().json()
            print(f"\n{source.name}: uploaded as {network['id']}, compressed by {job['id']}")
            job = follow(client, job)
            small = download(client, job, folder / f"small-{source.suffix[1:]}")
            print_table(source.name, job, (accuracy(source, images, labels), accuracy(small, images, labels)))
            print(f"\n  {small.relative_to(Path.cwd()) if small.is_relative_to(Path.cwd()) else small}")


if __name__ == "__main__":
    main()
