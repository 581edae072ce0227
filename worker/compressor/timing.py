"""The uploaded network against another one on the clock, as the job's runtime, threads and data make it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.spec.targets import LatencyTarget
from worker.compressor.errors import CompressorError
from worker.compressor.evaluation.footprint import affordable
from worker.compressor.evaluation.isolated import ask
from worker.compressor.evaluation.kept import keep_arrays
from worker.compressor.evaluation.latency import SECONDS
from worker.compressor.job import Job

TIMED_ROWS = 64
BATCHES = (1, 64)
#: What the values of both networks may take while they are timed.
TIMING_BYTES = 4 << 30


def time_networks(job: Job, file: Path, batches: Sequence[int], seconds: float = SECONDS) -> dict[str, Any]:
    """`{before, after}` of the upload and of `file`: for each batch a row `{batch, min, p50, p95, runtime, device}`, in ms."""
    context = job.context
    folder = context.request.folder
    feeds = job.data.test.feeds(slice(0, TIMED_ROWS))
    keep_arrays(folder / "timed.npz", {f"input{i:04d}": feed for i, feed in enumerate(feeds)})
    question = {
        "before": str(job.graph), "after": str(file), "feeds": str(folder / "timed.npz"),
        "batches": list(batches), "threads": context.request.threads, "seconds": seconds,
    }  # fmt: skip
    found = ask("worker.compressor.evaluation.latency", question, folder)
    warn_unless_alone(job, found)
    return found


def warn_unless_alone(job: Job, found: dict[str, Any]) -> None:
    """Times that were taken beside those of other jobs are told to be rough."""
    if not found["alone"]:
        job.context.warn("other jobs were being timed at the same moment: the latencies are rougher than usual")


def batches_of(job: Job, target: LatencyTarget | None) -> tuple[int, ...]:
    """The batches that results list: those that the network takes and memory has room for, and that of the target."""
    fixed, asked = job.answers.batch_size, () if target is None else (batch_of(job, target),)
    if fixed is not None:
        return (fixed,)
    most = affordable(job.original, job.shapes, TIMING_BYTES // 2)
    if most < max(BATCHES):
        job.context.warn(f"{max(BATCHES)} samples at once would take too much memory, so {most} are timed")
    return tuple(sorted({*asked, *(min(batch, most) for batch in BATCHES)}))


def batch_of(job: Job, target: LatencyTarget) -> int:
    """The batch that a target is about.

    Raises:
        CompressorError: `batch_too_large`, where there is no memory for it.
    """
    batch = target.batch or job.answers.batch_size or 1
    most = affordable(job.original, job.shapes, TIMING_BYTES // 2)
    if job.answers.batch_size is None and batch > most:
        raise CompressorError(
            f"{batch} samples at once would take too much memory to be timed",
            code="batch_too_large",
            error_class="user",
            hint=f"Ask for the latency of at most {most} samples at once.",
        )
    return batch
