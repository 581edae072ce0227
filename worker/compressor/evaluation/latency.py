"""Old against new on the clock: interleaved, by the shortest times, one measurement on a machine at a time.

On a shared machine one forward took 39 and 760 ms within 20 minutes: only a ratio of shortest times says anything.
Question: `{before, after, feeds, batches, threads, seconds}`; answer: `{before: [row…], after: [row…], alone}`.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worker.compressor.evaluation.isolated import answer
from worker.compressor.evaluation.kept import kept_arrays
from worker.compressor.evaluation.runtime import open_onnx

MIN_RUNS, MIN_RUNS_LATE = 20, 3
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
            calls = [partial(runner.run, feeds) for runner in runners]
            for side, runner, times in zip(rows, runners, interleaved(calls, question["seconds"]), strict=True):
                side.append(_row(batch, times, runner.runtime))
    return {"before": rows[0], "after": rows[1], "alone": is_alone}


def interleaved(
    calls: Sequence[Callable[[], object]], seconds: float = SECONDS, most_seconds: float = MAX_SECONDS
) -> list[list[float]]:
    """Times in seconds of each call, turn by turn: at least 20 each, and for `seconds`, unless that takes `most_seconds`."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while calls:
        for call, found in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            found.append(time.perf_counter() - begun)
        spent, num_runs = time.perf_counter() - start, len(times[0])
        if (num_runs >= MIN_RUNS and spent >= seconds) or (num_runs >= MIN_RUNS_LATE and spent >= most_seconds):
            break
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
