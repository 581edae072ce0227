"""What half of the MACs is worth on the clock: `python benchmarks/latency.py [FILE.onnx …] [--batch 32] [--threads 1 2]`.

Each network (and a VGG-like one that is made here) is cut to a share of its MACs by scores, once for each way to round widths, and
timed in onnxruntime against the whole one: interleaved, the shortest of `--rounds`. Prints a Markdown table of whole over
cut, beside what the MACs alone would give. No training and no data: what is timed does not depend on the weights.
`--cuts` are networks that jobs have made of the first FILE, timed beside it too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from app.spec.schema import Prune
from worker.compressor.evaluation.runtime import OnnxRunner
from worker.compressor.graph.counts import count
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.importers.onnx import import_onnx
from worker.compressor.graph.network import Network
from worker.compressor.graph.surgery import cut
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.structures.channels import Channels

ROUNDINGS: tuple[str | int, ...] = ("auto", 16, 8, 4, 1)
SCOPES = ("global", "layer")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--cuts", type=Path, nargs="+", default=[], metavar="CUT.onnx")
    parser.add_argument("--macs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.cuts and not arguments.files:
        parser.error("--cuts are of the first FILE")
    with tempfile.TemporaryDirectory() as folder:
        for path in [*arguments.files, write_vgg(Path(folder) / "vgg.onnx")]:
            show(path, arguments.cuts if path in arguments.files[:1] else [], Path(folder), arguments)


def show(path: Path, given: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    """One network's table."""
    network = import_onnx(path, None)
    whole = count(network, network.sample_shapes).macs
    cuts = {
        f"{scope} | {round_to}": narrowed(network, scope, round_to, arguments.macs)
        for scope in SCOPES
        for round_to in ROUNDINGS
    }
    files = [path]
    for number, made in enumerate(cuts.values()):
        files.append(folder / f"{number}.onnx")
        write_onnx(made, files[-1])
    for cut_path in given:
        files.append(cut_path)
        cuts[f"{cut_path.name} |"] = import_onnx(cut_path, None)
    times = {threads: shortest(files, network, threads, arguments) for threads in arguments.threads}
    print(
        f"\n{path.stem}, batch {arguments.batch}, whole: {', '.join(f'{t[0] * 1e3:.2f} ms' for t in times.values())}\n"
    )
    print(f"| scope | round_to | by MACs | {' | '.join(f'{threads} threads' for threads in times)} |")
    print("|---|---|---|" + "---|" * len(times))
    for number, (name, made) in enumerate(cuts.items(), 1):
        macs = count(made, made.sample_shapes).macs
        ratios = " | ".join(f"{found[0] / found[number]:.2f}" for found in times.values())
        print(f"| {name} | {whole / macs:.2f} | {ratios} |", flush=True)


def narrowed(network: Network, scope: str, round_to: str | int, percent: int) -> Network:
    """The network at that many percent of its MACs."""
    prune = Prune.model_validate({"target": {"macs": f"{percent}%"}, "scope": scope, "round_to": round_to})
    structure = Channels(network, network.sample_shapes, prune, lambda groups: Evidence(network, groups, prune.combine))
    most = count(network, network.sample_shapes).macs * percent // 100
    choice = structure.choose({"macs": most}, np.random.default_rng(0), {})
    return cut(network, choice.analysis, choice.kept).network


def shortest(files: list[Path], network: Network, threads: int, arguments: argparse.Namespace) -> list[float]:
    """The shortest time of each file in seconds, turn by turn."""
    runners = [OnnxRunner(file, threads) for file in files]
    rng = np.random.default_rng(0)
    feeds = tuple(
        rng.standard_normal((arguments.batch, *network.sample_shapes[port.name][1:])).astype(port.dtype)
        for port in network.inputs
    )
    best = [np.inf] * len(runners)
    for _ in range(arguments.rounds + 1):
        for index, runner in enumerate(runners):
            begun = time.perf_counter()
            runner.run(feeds)
            best[index] = min(best[index], time.perf_counter() - begun)
    return best


def write_vgg(path: Path) -> Path:
    """Six convolutions and two linear layers over 28 × 28 pictures."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 1
    for number, width in enumerate((64, 64, 128, 128, 256, 256)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if number % 2 else [])]
        before = width
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 9, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(2, 1, 28, 28),), str(path), dynamo=False, input_names=["image"],
            dynamic_axes={"image": {0: "batch"}}, opset_version=17,
        )  # fmt: skip
    return path


if __name__ == "__main__":
    main()
