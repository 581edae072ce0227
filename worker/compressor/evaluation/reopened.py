"""Judge the exact bytes that will be downloaded: opened again in a fresh process, run on every held-out row.

Question: `{folder, graph, first, files: {format: path}, answers, parity, shapes, most_rows}`; answer: `{figures, collapsed, finite,
parity: {format: relative error}}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.compressor.data.dataset import Dataset, load_dataset
from worker.compressor.data.noise import noise_dataset
from worker.compressor.data.synthetic import synthetic_dataset, synthetic_file
from worker.compressor.errors import ExportError
from worker.compressor.evaluation.isolated import answer
from worker.compressor.evaluation.kept import kept_arrays
from worker.compressor.evaluation.original import BATCH, Original
from worker.compressor.evaluation.runtime import Outputs, Runner, TorchRunner, open_as, open_onnx
from worker.compressor.evaluation.tally import Tally
from worker.compressor.request import Request, read_request


def job_dataset(request: Request, shapes: dict[str, tuple[int, ...]]) -> Dataset:
    """The rows of a job: its data set, else those that were synthesised for it, else noise. The same in every process."""
    assert request.spec is not None and request.spec.inputs is not None
    if request.dataset is None and synthetic_file(request.folder).exists():
        return synthetic_dataset(request.folder, request.spec.tensors)
    if request.dataset is None:
        return noise_dataset(request.spec.tensors, shapes, request.spec.seed)
    return load_dataset(request.dataset.file, request.dataset.format, request.spec)


def relative_error(wanted: np.ndarray, found: np.ndarray, resolution: float = 0.0) -> float:
    """Largest difference beyond the resolution over the largest magnitude; infinite where shapes or finiteness differ."""
    if wanted.shape != found.shape or not (np.isfinite(wanted) == np.isfinite(found)).all():
        return float("inf")
    wanted, found = np.nan_to_num(wanted.astype(np.float64)), np.nan_to_num(found.astype(np.float64))
    beyond = max(float(np.abs(wanted - found).max(initial=0.0)) - resolution, 0.0)
    return beyond / max(float(np.abs(wanted).max(initial=0.0)), 1e-12)


def reopen(question: dict[str, Any]) -> dict[str, Any]:
    """Compute the answer; raises `ExportError` where a file does not give outputs of the original's shapes."""
    request = read_request(Path(question["folder"]))
    assert request.spec is not None
    rows = job_dataset(request, {name: tuple(shape) for name, shape in question["shapes"].items()}).test
    original_runner = open_onnx(Path(question["graph"]), request.threads)
    original = Original(original_runner, question["identity"], Path(question["answers"]))
    runners = {
        name: _open(name, Path(path), request.threads, original_runner) for name, path in question["files"].items()
    }
    for runner in (original_runner, *runners.values()):
        runner.most_rows = question["most_rows"]
    tally = Tally(request.spec.task or "none")
    for at in range(0, len(rows), BATCH):
        positions = slice(at, at + BATCH)
        feeds = rows.feeds(positions)
        before, after = original.answers(rows, positions, feeds), runners[question["first"]].run_rows(feeds)
        _check_shapes(before, after)
        tally.add(before[0], after[0], rows.targets(positions))
    return {
        "figures": tally.figures(),
        "collapsed": tally.collapsed(),
        "finite": tally.finite,
        "parity": {name: _parity(runner, Path(question["parity"])) for name, runner in runners.items()},
    }


def _open(name: str, path: Path, threads: int, original: Runner) -> Runner:
    try:
        if name != "onnx":
            return TorchRunner(path, threads, original.batch_size)
        # What onnxruntime ran before the cut it must run after it.
        return open_as(original, path, threads)
    except Exception as error:
        raise ExportError(f"the {name} file that was written cannot be opened: {str(error)[:300]}") from error


def _check_shapes(before: Outputs, after: Outputs) -> None:
    if [output.shape for output in before] != [output.shape for output in after]:
        shapes = [list(output.shape) for output in before], [list(output.shape) for output in after]
        raise ExportError(f"the outputs had the shapes {shapes[0]} and now have {shapes[1]}")


def _parity(runner: Runner, path: Path) -> float | None:
    """The relative error of a file against the network in memory, over all outputs; None where it is not a number.

    One row alone has to go through as well: a batch of 1 is what torch's exporters like to fix.
    """
    feeds, wanted = kept_arrays(path, "input"), kept_arrays(path, "output")
    resolutions = kept_arrays(path, "resolutions")[0].tolist()
    runner.run_rows(tuple(feed[:1] for feed in feeds))
    found = runner.run_rows(feeds)
    error = max((relative_error(*pair) for pair in zip(wanted, found, resolutions, strict=True)), default=0.0)
    return error if np.isfinite(error) else None


if __name__ == "__main__":
    answer(reopen)
