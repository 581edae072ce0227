"""Old against new on the clock: interleaved, by the shortest times, one measurement on a machine at a time.

On a shared machine one forward took 39 and 760 ms within 20 minutes: only a ratio of shortest times says anything.
Question: `{before, after, feeds, batches, threads}`; answer: `{before: [row…], after: [row…], waited}`.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worker.compressor.evaluation.engine import open_onnx
from worker.compressor.evaluation.isolated import answer
from worker.compressor.evaluation.kept import kept_arrays
from worker.compressor.evaluation.runtime import Feeds, Runner

MIN_RUNS = 20
SECONDS, MAX_SECONDS = 0.4, 30.0
MAX_WAIT_SECONDS = 60.0
LOCK_NAME = "featherweight-latency.lock"


def measure(question: dict[str, Any]) -> dict[str, Any]:
    """Rows `{batch, min, p50, p95, runtime, device}` in milliseconds for both files."""
    runners = [open_onnx(Path(question[side]), question["threads"]) for side in ("before", "after")]
    samples = kept_arrays(Path(question["feeds"]), "input")
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with machine_lock() as is_alone:
        for batch in question["batches"]:
            feeds = tuple(sample[np.arange(batch) % len(sample)] for sample in samples)
            for side, runner, times in zip(rows, runners, interleaved(runners, feeds), strict=True):
                side.append(_row(batch, times, runner.runtime))
    return {"before": rows[0], "after": rows[1], "alone": is_alone}


def interleaved(runners: list[Runner], feeds: Feeds) -> list[list[float]]:
    """Times in seconds of each runner, turn by turn: at least 20 each unless that takes half a minute."""
    for runner in runners:
        runner.run(feeds)
    times: list[list[float]] = [[] for _ in runners]
    start = time.perf_counter()
    while True:
        for runner, found in zip(runners, times, strict=True):
            begun = time.perf_counter()
            runner.run(feeds)
            found.append(time.perf_counter() - begun)
        spent = time.perf_counter() - start
        if (len(times[0]) >= MIN_RUNS and spent >= SECONDS) or (len(times[0]) >= 3 and spent >= MAX_SECONDS):
            return times


@contextmanager
def machine_lock() -> Iterator[bool]:
    """Hold the machine's latency lock; yields False where others kept it for a minute, or it cannot be opened."""
    try:
        # The worker gives each attempt a temporary folder of its own, and says here where the machine's is.
        folder = Path(os.environ.get("FEATHERWEIGHT_LOCK_DIR") or tempfile.gettempdir())
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield False
        return
    try:
        yield _acquire(handle)
    finally:
        os.close(handle)


def _acquire(handle: int) -> bool:
    end = time.monotonic() + MAX_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)


def _row(batch: int, times: list[float], runtime: str) -> dict[str, Any]:
    shortest, middle, slow = (float(np.percentile(times, q)) * 1e3 for q in (0, 50, 95))
    return {"batch": batch, "min": shortest, "p50": middle, "p95": slow, "runtime": runtime, "device": "cpu"}


if __name__ == "__main__":
    answer(measure)
