"""The figures of several networks on the same validation rows, to see what each of them lost against the original.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from worker.compressor.data.dataset import Rows
from worker.compressor.distillation.objective import OutputKind, Scores, Task, output_kind
from worker.compressor.evaluation.original import BATCH, Original
from worker.compressor.evaluation.runtime import Feeds, Outputs
from worker.compressor.evaluation.tally import Tally

Figures = dict[str, float | None]


class Exam:
    """Examines networks on rows; the original's answers are computed once."""

    def __init__(self, rows: Rows, original: Original, task: Task) -> None:
        self._rows, self._original, self._task = rows, original, task
        original.learn(rows)
        self._kind = output_kind(original.answers(rows, slice(0, BATCH))[0], task)

    def __call__(self, run: Callable[[Feeds], Outputs]) -> Figures:
        """One pass over the rows: what `Tally.figures` has, and the `divergence`; all None where numbers are not finite."""
        tally, divergences = Tally(self._task), []
        step = min(BATCH, self._original.most_rows or BATCH)
        for at in range(0, len(self._rows), step):
            positions = slice(at, at + step)
            feeds = self._rows.feeds(positions)
            before, after = self._original.answers(self._rows, positions, feeds)[0], run(feeds)[0]
            tally.add(before, after, self._rows.targets(positions))
            divergences.append(divergence(self._kind, before, after))
        found: dict[str, Any] = tally.figures() | {"divergence": float(np.concatenate(divergences).mean())}
        return found if tally.finite else dict.fromkeys(found)


def divergence(kind: OutputKind | None, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each row `[N]` is from what it was, smooth where accuracy is flat, 0 where nothing changed.

    Of class scores the Kullback-Leibler divergence of the softmax, `Σ p log(p / q)`, in nats; of other values the squared
    difference over twice the variance, which is that of two normal distributions of this variance.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if kind is None or kind.scores is Scores.VALUES:
        variance = before.var() if kind is None else kind.spread**2
        return np.square(after - before).reshape(len(before), -1).mean(-1) / (2 * max(float(variance), 1e-12))
    old, new = _log_shares(kind, before), _log_shares(kind, after)
    return (np.exp(old) * (old - new)).sum(-1).reshape(len(before), -1).mean(-1)


def _log_shares(kind: OutputKind, output: np.ndarray) -> np.ndarray:
    if kind.scores is Scores.PROBABILITIES:
        output = np.log(np.maximum(output, 1e-9))
    shifted = output - output.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
