"""The limits of recovery without labels: `python benchmarks/limits.py DATA FOLDER [--seeds 0 1 2 3 4] [--distill N]`.

A residual CNN for Fashion-MNIST, trained once per seed and kept in FOLDER, goes through the engine as a folded ONNX file (as
TorchScript where there is no data): cut to a share of the MACs and repaired with unlabelled rows alone. Printed are the points of
accuracy that are lost on the test rows, as medians beside the limits, and the seconds that cut, recovery and distillation
took. `--files` names a network that is there already, in both formats: the seeds then draw the rows alone. Every figure is
a line of FOLDER/limits.jsonl, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.book import Book, Row
from benchmarks.engine_jobs import compress
from benchmarks.fashion import PREPROCESS, Block, Rows, Training, accuracy, load_rows, train
from benchmarks.peer_networks import export

PLAN = Training(epochs=6, peak=0.1)
_PICTURE = (1, 28, 28)


@dataclass(frozen=True)
class Case:
    """What is asked and what may be lost: `points` of accuracy, or as many more than the case `above` loses."""

    name: str
    share: int
    samples: int
    is_distilled: bool
    points: float
    above: str | None = None


CASES = (
    Case("50 %, 512 rows", 50, 512, False, 0.6),
    Case("25 %, 512 rows", 25, 512, False, 1.8),
    Case("25 %, 512 rows, distilled", 25, 512, True, 1.0),
    Case("50 %, 64 rows", 50, 64, False, 0.8, above="50 %, 512 rows"),
    Case("25 %, 64 rows", 25, 64, False, 0.8, above="25 %, 512 rows"),
    Case("50 %, no data, TorchScript", 50, 0, False, 5.0),
)


def residual_cnn() -> nn.Module:
    """Six residual blocks of 32, 64 and 128 channels; the first stride is 1, every stage halves the side."""
    layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    width = 32
    for wider in (32, 64, 128):
        layers += [Block(width, wider, 2), Block(wider, wider, 1)]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@dataclass
class Limits:
    """One trained network and its cases."""

    seed: int
    folder: Path
    train: Rows
    test: Rows
    distill: int
    spec: Row
    files: tuple[Path, Path] | None = None

    def original(self) -> nn.Module:
        """The network before the cut."""
        if self.files:
            return torch.jit.load(str(self.files[1])).eval()
        torch.manual_seed(self.seed)
        net, kept = residual_cnn().to(memory_format=torch.channels_last), self.folder / f"residual-{self.seed}.pt"
        if kept.exists():
            net.load_state_dict(torch.load(kept, weights_only=True))
        else:
            train(net, self.train, PLAN, self.seed)
            torch.save(net.state_dict(), kept)
        return net.eval()

    def measure(self, case: Case) -> Row:
        """Accuracy, agreement, MACs and the seconds of the stages."""
        folder = self.folder / f"limit-{self.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prune: Row = {"target": {"macs": f"{case.share}%"}}
        if case.samples:
            prune |= self.spec
            prune["recovery"] = {"samples": case.samples, "distill": self.distill if case.is_distilled else 0}
        spec: Row = {"version": 1, "seed": self.seed, "steps": [{"prune": prune}]}
        if case.samples:
            spec["preprocess"] = PREPROCESS
        else:
            spec["inputs"] = [{"name": "x", "dtype": "float32", "shape": ["batch", *_PICTURE]}]
        done = compress(folder / "job", self._model(folder, case), self._rows(folder, case), spec, threads=2)
        figures, stages = done.compressed, done.report["stages"]
        seconds = {stage["name"]: round(stage["seconds"], 1) for stage in stages}
        made = done.output / "model.pt"
        found = figures["accuracy"] if case.samples else accuracy(torch.jit.load(str(made)), self.test)
        shutil.rmtree(folder)
        return {"accuracy": found, "macs": figures["macs"], "stages": seconds}

    def _model(self, folder: Path, case: Case) -> Path:
        if self.files:
            return self.files[0 if case.samples else 1]
        net = self.original()
        if case.samples:
            return export(net, torch.zeros(2, *_PICTURE), folder / "net.onnx", folded=True)
        torch.jit.script(net).save(str(folder / "net.pt"))
        return folder / "net.pt"

    def _rows(self, folder: Path, case: Case) -> Path | None:
        if not case.samples:
            return None
        few = self.train.drawn(case.samples, self.seed)
        np.savez(folder / "rows.npz", x_train=few.x, x_test=self.test.x, y_test=self.test.y)
        return folder / "rows.npz"


def lines(book: Book) -> Iterator[str]:
    """The table in Markdown."""
    whole = {row["seed"]: row["accuracy"] for row in book.find(case="original")}
    lost: dict[str, list[float]] = {}
    yield "| case | points lost, median | each seed | limit | seconds of cut and recovery |"
    yield "|---|---|---|---|---|"
    for case in CASES:
        rows = book.find(case=case.name)
        if not rows:
            continue
        lost[case.name] = [100 * (whole[row["seed"]] - row["accuracy"]) for row in rows]
        limit = case.points + (statistics.median(lost[case.above]) if case.above in lost else 0.0)
        seconds = statistics.median(_repair(row["stages"]) for row in rows)
        each = ", ".join(f"{value:.2f}" for value in lost[case.name])
        yield f"| {case.name} | {statistics.median(lost[case.name]):.2f} | {each} | {limit:.2f} | {seconds:.0f} |"
    yield ""
    yield "The originals: " + ", ".join(f"{value:.4f}" for value in whole.values())


def _repair(stages: dict[str, float]) -> float:
    return sum(seconds for name, seconds in stages.items() if name not in _AROUND)


#: Stages of every job, whatever is asked.
_AROUND = ("preparing", "baseline", "verify", "latency")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--distill", type=int, default=700, help="steps of the short distillation")
    parser.add_argument("--spec", type=json.loads, default={}, help="of the cuts with data")
    parser.add_argument("--files", type=Path, nargs=2, metavar=("ONNX", "TORCHSCRIPT"))
    told = parser.parse_args()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    told.folder.mkdir(exist_ok=True)
    book = Book(told.folder / "limits.jsonl")
    learnt, held_out = load_rows(told.data)
    for seed in told.seeds:
        limits = Limits(seed, told.folder, learnt, held_out, told.distill, told.spec, told.files)
        book.keep({"seed": seed, "case": "original"}, lambda of=limits: {"accuracy": accuracy(of.original(), held_out)})
        for case in CASES:
            if case.name in told.cases:
                book.keep({"seed": seed, "case": case.name}, lambda of=limits, c=case: of.measure(c))
    print("\n".join(lines(book)))


if __name__ == "__main__":
    main()
