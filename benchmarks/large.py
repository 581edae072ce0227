"""What a network of 25 million parameters costs: `python benchmarks/large.py [--samples 32 64 128] [--criterion NAME]`.

ResNet-50 with random weights and the BatchNorm statistics of smooth random pictures, 224 × 224, as a folded ONNX file: half
of its MACs go, and the rest is repaired without labels. A Markdown row for each number of unlabelled rows: seconds of the
stages by the clock, and the peak of the resident memory of the process that did the job, the upload's inspection included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.architectures import ResNet50, write_onnx
from benchmarks.engine_jobs import compress

STAGES = ("prune", "recover", "verify", "latency")


def pictures(count: int, seed: int) -> np.ndarray:
    """Noise in three sizes, `[count, 3, 224, 224]` float32."""
    torch.manual_seed(seed)
    sizes = (7, 28, 112)
    parts = [F.interpolate(torch.randn(count, 3, s, s), 224, mode="bilinear") for s in sizes]
    return torch.stack(parts).sum(0).numpy()


def write(folder: str) -> None:
    """The network; in a process of its own, whose memory is not the job's."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    net = ResNet50().train()
    with torch.no_grad():
        for seed in range(20):
            net(torch.from_numpy(pictures(16, seed)))
    write_onnx(net.eval(), (torch.zeros(2, 3, 224, 224),), Path(folder) / "net.onnx", folded=True)


def measure(folder: str, samples: int, criterion: str | None, threads: int) -> list[Any]:
    """Seconds of the stages, the rows that there was room for, the error of the outputs, and the peak in GB."""
    warnings.simplefilter("ignore")
    here = Path(folder) / f"job-{samples}"
    here.mkdir()
    np.savez(here / "rows.npz", x_train=pictures(samples, 100), x_test=pictures(64, 101))
    prune: dict[str, Any] = {"target": {"macs": "50%"}, "recovery": {"samples": samples}}
    if criterion:
        prune["criterion"] = criterion
    spec = {"version": 1, "steps": [{"prune": prune}]}
    done = compress(here / "work", Path(folder) / "net.onnx", here / "rows.npz", spec, threads=threads)
    stages = {stage["name"]: stage for stage in done.report["stages"]}
    seconds = [round(stages[name]["seconds"], 1) for name in STAGES]
    rows, error = stages["recover"]["metrics"]["samples"], done.compressed["output_error"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    whole = round(sum(stage["seconds"] for stage in stages.values()), 1)
    return [samples, rows, *seconds, whole, f"{error:.4f}", round(peak, 2)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--criterion")
    parser.add_argument("--threads", type=int, default=2)
    told = parser.parse_args()
    # A fresh process for each: what one job left is not the next one's peak.
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        pool.apply(write, (folder,))
        print(f"| rows asked | rows | {' | '.join(STAGES)} | all stages | output error | peak, GB |")
        print("|---" * 9 + "|")
        for samples in told.samples:
            row = pool.apply(measure, (folder, samples, told.criterion, told.threads))
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
