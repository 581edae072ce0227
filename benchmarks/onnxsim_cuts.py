"""onnxsim's structured pruning, with the sparsity whose MACs come nearest to those that were asked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim

from worker.compressor.graph.counts import count
from worker.compressor.graph.importers import import_model

NORMS = ("l1", "l2")
_STEPS = 10


def cut_file_to(source: Path, path: Path, macs: int, norm: str) -> int:
    """Write the cut file to `path`; its MACs. Where nothing can be cut, or not so far, it is the nearest that there is.

    Raises `ImportFailed` where a cut file cannot be run.
    """
    best, distance, low, high = _macs(source), float("inf"), 0.0, 1.0
    for _ in range(_STEPS):
        sparsity = (low + high) / 2
        made = onnxsim.apply_structured_pruning(onnx.load(str(source)), sparsity=sparsity, importance_norm=norm)
        trial = path.with_suffix(".trial.onnx")
        onnx.save(made, str(trial))
        found = _macs(trial)
        if abs(found - macs) < distance:
            best, distance = found, abs(found - macs)
            trial.replace(path)
        low, high = (sparsity, high) if found > macs else (low, sparsity)
    return best


def _macs(path: Path) -> int:
    network, _ = import_model(path, "onnx", None)
    return count(network, network.sample_shapes).macs
