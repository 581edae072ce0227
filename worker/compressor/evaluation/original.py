"""What the original answers, computed once per row and kept: the teacher's targets and the baseline's figures.

Answers do not depend on seed or split, so they are kept by array and row, and other jobs on the same network and data
find them in a file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worker.compressor.data.dataset import Rows
from worker.compressor.data.formats import open_arrays
from worker.compressor.errors import DataError
from worker.compressor.evaluation.runtime import Outputs, Runner
from worker.compressor.outcome import write_whole

BATCH = 256
# Beyond this the answers of a split are computed again when they are needed.
MAX_KEPT_BYTES = 1 << 30
MAX_FILE_BYTES = 64 << 20

Progress = Callable[[float], None]


class Original:
    """The original network and what it answered so far."""

    def __init__(self, runner: Runner, identity: str, file: Path | None) -> None:
        self._runner = runner
        self._identity = hashlib.sha256(identity.encode()).hexdigest()
        self._file = file
        self._answers: dict[str, list[np.ndarray]] = {}
        self._known: dict[str, np.ndarray] = {}
        if file is not None and file.exists():
            self._read(file)

    @property
    def batch_size(self) -> int | None:
        """The only number of rows that the network takes; None where it is free."""
        return self._runner.batch_size

    @property
    def most_rows(self) -> int | None:
        """How many rows may go through a network of this size at once; None where there is no such limit."""
        return self._runner.most_rows

    def answers(
        self, rows: Rows, positions: np.ndarray | slice, feeds: tuple[np.ndarray, ...] | None = None
    ) -> Outputs:
        """All outputs for these positions of `rows`; `feeds` are their inputs where the caller has them at hand."""
        wanted = rows.index[positions]
        known = self._known.get(rows.split)
        if known is not None and known[wanted].all():
            return tuple(answers[wanted] for answers in self._answers[rows.split])
        return self._runner.run_rows(rows.feeds(positions) if feeds is None else feeds)

    def learn(self, rows: Rows, progress: Progress = lambda share: None) -> None:
        """Compute and keep the answers for all of `rows`, as far as memory allows."""
        missing = np.arange(len(rows))
        if rows.split in self._known:
            missing = missing[~self._known[rows.split][rows.index]]
        for at in range(0, len(missing), BATCH):
            positions = missing[at : at + BATCH]
            outputs = self._runner.run_rows(rows.feeds(positions))
            if rows.split not in self._known and not self._reserve(rows, len(positions), outputs):
                return
            for answers, output in zip(self._answers[rows.split], outputs, strict=True):
                answers[rows.index[positions]] = output
            self._known[rows.split][rows.index[positions]] = True
            progress((at + len(positions)) / len(missing))

    def save(self) -> None:
        """Leave the answers for other jobs on the same network and data; a cache, so failures are no one's concern."""
        total = sum(answers.nbytes for split in self._answers.values() for answers in split)
        if self._file is None or not self._answers or total > MAX_FILE_BYTES:
            return
        arrays = {f"known.{split}": known for split, known in self._known.items()}
        for split, outputs in self._answers.items():
            arrays |= {f"answers.{split}.{i:04d}": answers for i, answers in enumerate(outputs)}
        stream = io.BytesIO()
        np.savez(stream, identity=np.frombuffer(json.dumps(self._identity).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        try:
            write_whole(self._file, stream.getvalue())
        except OSError:
            return

    def _reserve(self, rows: Rows, num_rows: int, outputs: Outputs) -> bool:
        """Make room for a split's answers, where each output has a row per sample and all of them fit in memory."""
        count = len(rows.arrays[0])
        if any(len(output) != num_rows for output in outputs):
            return False
        if count * sum(output[0].nbytes for output in outputs) > MAX_KEPT_BYTES:
            return False
        self._answers[rows.split] = [np.zeros((count, *output.shape[1:]), output.dtype) for output in outputs]
        self._known[rows.split] = np.zeros(count, bool)
        return True

    def _read(self, file: Path) -> None:
        try:
            arrays = {array.name: np.array(array.array()) for array in open_arrays(file, "npz")}
        except (DataError, OSError):
            return
        if bytes(arrays.pop("identity", np.zeros(0, np.uint8))) != json.dumps(self._identity).encode():
            return
        for name, known in arrays.items():
            if name.startswith("known."):
                split = name.removeprefix("known.")
                outputs = [a for key, a in sorted(arrays.items()) if key.rpartition(".")[0] == f"answers.{split}"]
                self._known[split], self._answers[split] = known, outputs
