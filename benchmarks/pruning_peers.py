"""The engine beside Torch-Pruning and onnxsim on Fashion-MNIST: `python benchmarks/pruning_peers.py DATA FOLDER [--seeds 0 1 2]`.

Two networks, the same weights for all, cut once to 50, 25 and 10 % of the MACs: accuracy on the test rows as cut, after recovery
with 512 unlabelled rows, and after one epoch with labels (the same loop, optimiser and order of the rows for all). It runs in
the peers' environment (`requirements-peers.txt`). Every figure is a line of FOLDER/rows.jsonl, kept as soon as it is there;
what is there already is not measured again, so the script can be stopped and called again. `--table` prints what there is.

- The engine gets the ONNX file with its BatchNorm and the default spec; as cut the best of eight specs with `recovery: none` by
  the accuracy on the test rows, one of which is the default: it has a line of its own beside the best.
- Torch-Pruning gets the live network; after the cut its BatchNorm is estimated again on the same rows. Its pruning ratio is
  bisected until the MACs are met, and each of its cells is the best of its variants by the accuracy on the test rows.
- onnxsim gets the ONNX file with BatchNorm folded, for it cuts no other; BatchNorm that could be estimated again is gone then.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.book import Book, Row
from benchmarks.engine_jobs import compress
from benchmarks.fashion import NETWORKS, PREPROCESS, Rows, Training, accuracy, load_rows, train, trained
from benchmarks.onnxsim_cuts import NORMS, cut_file_to
from benchmarks.peer_networks import export
from benchmarks.torch_pruning_cuts import VARIANTS, Variant, cut_to, macs_of, reestimated
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.training.executor import to_module

SHARES = (50, 25, 10)
SIDES = ("engine", "Torch-Pruning", "onnxsim")
STAGES = {"cut": "as cut", "recovered": "512 unlabelled rows", "tuned": "one epoch with labels"}
SAMPLES = 512
FIRST = Training(epochs=4, peak=0.1)
AGAIN = Training(epochs=1, peak=0.05)
DEFAULT = "default"
#: As cut the best of these counts, as Torch-Pruning's is the best of its eight; where a repair follows the default is asked for.
SPECS: dict[str, Row] = {
    DEFAULT: {},
    "bn_scale, sensitivity": {"criterion": "bn_scale", "allocation": "sensitivity"},
    **{
        f"{criterion}, {name}": {"criterion": criterion, **how, "round_to": 1}
        for name, how in (("score", {"allocation": "score"}), ("layer", {"scope": "layer"}))
        for criterion in ("bn_scale", "l1", "taylor")
    },
}
#: How many of Torch-Pruning's variants are trained on, the best after recovery first.
TUNED = 1


@dataclass
class Subject:
    """One trained network, its files, and the rows that all sides get."""

    name: str
    seed: int
    net: nn.Module
    folder: Path
    train: Rows
    test: Rows

    def __post_init__(self) -> None:
        self.picture: Tensor = torch.zeros(1, 1, 28, 28)
        self.few = self.train.drawn(SAMPLES, self.seed)
        self.macs = macs_of(self.net, self.picture)

    @property
    def about(self) -> Row:
        return {"network": self.name, "seed": self.seed}

    def target(self, share: int) -> int:
        """MACs at a share in percent."""
        return self.macs * share // 100

    def path(self, name: str) -> Path:
        return self.folder / f"{self.name}-{self.seed}{name}"

    def onnx(self, *, folded: bool) -> Path:
        path = self.path("-folded.onnx" if folded else ".onnx")
        if not path.exists():
            export(self.net, self.picture.repeat(2, 1, 1, 1), path, folded=folded)
        return path

    def unlabelled(self) -> Path:
        """The data set of the engine's jobs: no labels but those of the rows that are reported on."""
        path = self.path(".npz")
        if not path.exists():
            np.savez(path, x_train=self.few.x, x_test=self.test.x, y_test=self.test.y)
        return path


def engine(book: Book, subject: Subject, share: int, *, tune: bool) -> None:
    """The rows of the engine."""
    about = {**subject.about, "side": "engine", "share": share}
    kept = subject.path(f"-{share}.onnx")

    def job(spec: str, recovery: Row) -> Row:
        prune = {**SPECS[spec], "target": {"macs": f"{share}%"}, **recovery}
        asked: Row = {"version": 1, "seed": subject.seed, "preprocess": PREPROCESS, "steps": [{"prune": prune}]}
        # The job's own figures are of few rows: all sides are measured alike, on all of them.
        asked["evaluation"] = {"max_samples": SAMPLES}
        folder = subject.path("-job")
        shutil.rmtree(folder, ignore_errors=True)
        cache = subject.path("-cache.json")
        done = compress(folder, subject.onnx(folded=False), subject.unlabelled(), asked, cache)
        shutil.copy(done.output / "model.onnx", kept)
        macs = done.compressed["macs"] / subject.macs
        shutil.rmtree(folder)
        return {"macs": macs, "accuracy": accuracy(module_of(kept), subject.test)}

    for spec in SPECS:
        book.keep({**about, "variant": spec, "stage": "cut"}, lambda s=spec: job(s, {"recovery": "none"}))
    about |= {"variant": DEFAULT}
    recovered = book.keep({**about, "stage": "recovered"}, lambda: job(DEFAULT, {}))
    if tune:
        macs = recovered["macs"]  # of the file that the recovery left
        book.keep({**about, "stage": "tuned"}, lambda: {"macs": macs, "accuracy": tuned(subject, module_of(kept))})


def torch_pruning(book: Book, subject: Subject, share: int, variants: list[Variant], *, tune: bool) -> None:
    """The rows of every variant, and of the best after recovery that of the training."""
    made: dict[str, nn.Module] = {}

    def cut(variant: Variant) -> nn.Module:
        if variant.name not in made:
            made[variant.name] = cut_to(subject.net, subject.picture, subject.target(share), variant, subject.few)
        return made[variant.name]

    def figures(net: nn.Module) -> Row:
        return {"macs": macs_of(net, subject.picture) / subject.macs, "accuracy": accuracy(net, subject.test)}

    about = {**subject.about, "side": "Torch-Pruning", "share": share}
    for variant in variants:
        told = {**about, "variant": variant.name}
        book.keep({**told, "stage": "cut"}, lambda v=variant: figures(cut(v)))
        book.keep({**told, "stage": "recovered"}, lambda v=variant: figures(reestimated(cut(v), subject.few)))
    if tune:
        by_name = {variant.name: variant for variant in variants}
        ranked = sorted(book.find(**about, stage="recovered"), key=lambda row: -row["accuracy"])
        for name in [row["variant"] for row in ranked if row["variant"] in by_name][:TUNED]:

            def train_on(variant: Variant = by_name[name]) -> Row:
                net = reestimated(cut(variant), subject.few)
                return {"macs": macs_of(net, subject.picture) / subject.macs, "accuracy": tuned(subject, net)}

            book.keep({**about, "variant": name, "stage": "tuned"}, train_on)


def onnxsim(book: Book, subject: Subject, share: int, *, tune: bool) -> None:
    """The rows of onnxsim's structured pruning, which has no recovery."""
    path = subject.path("-onnxsim.onnx")

    def figures(norm: str, accuracy_of: Callable[[nn.Module], float]) -> Row:
        found = cut_file_to(subject.onnx(folded=True), path, subject.target(share), norm)
        return {"macs": found / subject.macs, "accuracy": accuracy_of(module_of(path))}

    about = {**subject.about, "side": "onnxsim", "share": share}
    for norm in NORMS:
        told = {**about, "variant": norm, "stage": "cut"}
        book.keep(told, lambda n=norm: figures(n, lambda net: accuracy(net, subject.test)))
    if tune:
        best = max(book.find(**about, stage="cut"), key=lambda row: row["accuracy"])["variant"]
        told = {**about, "variant": best, "stage": "tuned"}
        book.keep(told, lambda: figures(best, lambda net: tuned(subject, net)))


def module_of(path: Path) -> nn.Module:
    """A file as a module that can be trained."""
    network, _ = import_model(path, "onnx", None)
    return to_module(network, single=True).to(memory_format=torch.channels_last)


def tuned(subject: Subject, net: nn.Module) -> float:
    """The accuracy after the same epoch for all."""
    train(net, subject.train, AGAIN, seed=100 + subject.seed)
    return accuracy(net, subject.test)


def measure(book: Book, subject: Subject, told: argparse.Namespace) -> None:
    """All rows of one network."""
    book.keep({**subject.about, "side": "original"}, lambda: {"accuracy": accuracy(subject.net, subject.test)})
    for share in told.macs:
        if "engine" in told.sides:
            engine(book, subject, share, tune=not told.quick)
        if "Torch-Pruning" in told.sides:
            torch_pruning(book, subject, share, VARIANTS, tune=not told.quick)
        if "onnxsim" in told.sides:
            onnxsim(book, subject, share, tune=not told.quick)


def lines(book: Book) -> Iterator[str]:
    """The table in Markdown: medians, and in brackets each seed; in a cell are the seeds that the engine and Torch-Pruning have."""
    yield "| network | MACs | | engine | Torch-Pruning | onnxsim |"
    yield "|---|---|---|---|---|---|"
    for name in NETWORKS:
        yield f"| {name} | 100 % | | {_cell(_bests(book, network=name, side='original'))} | | |"
        for share in SHARES:
            for stage, text in STAGES.items():
                about = {"network": name, "share": share, "stage": stage}
                least = 1 if stage == "tuned" else len(VARIANTS)
                ours = _bests(book, len(SPECS) if stage == "cut" else 1, **about, side="engine")
                theirs = _bests(book, least, **about, side="Torch-Pruning")
                others = _bests(book, **about, side="onnxsim")
                cells = [
                    _cell({seed: side[seed] for seed in side if seed in ours and seed in theirs})
                    for side in (ours, theirs, others)
                ]
                yield f"| {name} | {share} % | {text} | " + " | ".join(cells) + " |"
                if stage == "cut":
                    default = _cell(_bests(book, **about, side="engine", variant=DEFAULT))
                    yield f"| {name} | {share} % | as cut, default spec | {default} | | |"


def _bests(book: Book, least: int = 1, **about: Any) -> dict[int, float]:
    """The best variant's accuracy for each seed of which so many are measured."""
    by_seed: dict[int, list[float]] = {}
    for row in book.find(**about):
        by_seed.setdefault(row["seed"], []).append(row["accuracy"])
    return {seed: max(found) for seed, found in sorted(by_seed.items()) if len(found) >= least}


def _cell(by_seed: dict[int, float]) -> str:
    if not by_seed:
        return "–"
    each = ", ".join(f"{100 * value:.1f}" for value in by_seed.values())
    return f"{100 * statistics.median(by_seed.values()):.1f} ({each})" if len(by_seed) > 1 else each


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--macs", type=int, nargs="+", default=SHARES, choices=SHARES)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--quick", action="store_true", help="no training after the cut")
    parser.add_argument("--table", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    told.folder.mkdir(exist_ok=True)
    book = Book(told.folder / "rows.jsonl")
    if not told.table:
        learnt, held_out = load_rows(told.data)
        for seed in told.seeds:
            for name in told.networks:
                net = trained(name, seed, learnt, FIRST, told.folder)
                measure(book, Subject(name, seed, net, told.folder, learnt, held_out), told)
    print("\n".join(lines(book)))


if __name__ == "__main__":
    main()
