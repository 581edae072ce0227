"""Half of the parameters of a small speech network: `python benchmarks/speech.py --url URL FOLDER [--seeds 0 1 2 3 4]`.

FOLDER holds `JapaneseVowels_TRAIN.ts` and `JapaneseVowels_TEST.ts` of the UEA archive (12 cepstral coefficients over up to 29
frames, 9 speakers, 270 and 370 series; Kudo et al. 1999). A convolution and a bidirectional GRU or LSTM are trained here for
each seed, then jobs of a running service remove half of the parameters by L1 and retrain with labels. Prints a Markdown row for
each seed: accuracy on the 370 series before, with the repair alone, and after retraining; and the median of the losses.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from criteria import Service
from torch import nn

FRAMES, COEFFICIENTS, SPEAKERS = 29, 12, 9
RETRAIN = {"finetune": {"epochs": 30, "batch_size": 30, "optimizer": {"name": "adamw", "lr": 1e-3}}}


class Speech(nn.Module):
    """Convolution over time, a recurrent layer in both directions, the mean over time, a linear layer."""

    def __init__(self, kind: str, width: int = 64) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(COEFFICIENTS, width, 3, padding=1), nn.BatchNorm1d(width)
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, SPEAKERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn(self.conv(x))).transpose(1, 2)
        return self.head(self.rnn(hidden)[0].mean(1))


def series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 12, 29]` float32, zeros behind the end of each series, and the speakers from 0 `[N]`."""
    lines = path.read_text().splitlines()
    rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line.strip()]
    x = np.zeros((len(rows), COEFFICIENTS, FRAMES), np.float32)
    for row, (*channels, _) in enumerate(rows):
        for channel, numbers in enumerate(channels):
            values = np.array(numbers.split(","), np.float32)
            x[row, channel, : len(values)] = values
    return x, np.array([int(float(row[-1])) - 1 for row in rows], np.int64)


def train(kind: str, seed: int, x: np.ndarray, y: np.ndarray, epochs: int = 60) -> nn.Module:
    """A trained network, in evaluation mode."""
    torch.manual_seed(seed)
    net, inputs, labels = Speech(kind), torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(30):
            loss = F.cross_entropy(net(inputs[rows]), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def export(net: nn.Module, x: np.ndarray, path: Path) -> None:
    torch.onnx.export(
        net, (torch.from_numpy(x[:2]),), str(path), dynamo=False, input_names=["x"], output_names=["speakers"],
        dynamic_axes={"x": {0: "batch"}, "speakers": {0: "batch"}},
    )  # fmt: skip


def accuracies(service: Service, model: str, dataset: str, seed: int) -> tuple[float, float, float]:
    """Before, after the cut and its repair, and after retraining."""
    prune = {"prune": {"criterion": "l1", "target": {"params": "50%"}}}
    found: list[Any] = []
    for steps in ([prune], [prune, RETRAIN]):
        job = service.run(model, dataset, {"version": 1, "seed": seed, "steps": steps})
        assert job["status"] == "succeeded", job["error"]
        found.append(job["result"])
    return (found[0]["baseline"]["accuracy"], *(result["compressed"]["accuracy"] for result in found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", default=["gru", "lstm"], choices=["gru", "lstm"])
    parser.add_argument("folder", type=Path)
    told = parser.parse_args()
    service = Service(told.url)
    (x, y), (xt, yt) = (series(told.folder / f"JapaneseVowels_{split}.ts") for split in ("TRAIN", "TEST"))
    print("| network | seed | before | repaired | retrained |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "vowels.npz"
        np.savez(data, x_train=x, y_train=y, x_test=xt, y_test=yt)
        dataset = service.upload("datasets", data)
        for kind in told.kinds:
            lost = []
            for seed in told.seeds:
                path = Path(folder) / f"{kind}{seed}.onnx"
                export(train(kind, seed, x, y), x, path)
                before, repaired, retrained = accuracies(service, service.upload("models", path), dataset, seed)
                lost.append(before - retrained)
                print(f"| {kind} | {seed} | {before:.4f} | {repaired:.4f} | {retrained:.4f} |", flush=True)
            print(f"| {kind} | median lost | | | {100 * statistics.median(lost):.2f} points |", flush=True)


if __name__ == "__main__":
    main()
