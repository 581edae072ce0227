"""Choosing on the way: which of two networks is better on the validation rows. Never a reported figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from worker.compressor.data.dataset import Rows
from worker.compressor.evaluation.original import Original
from worker.compressor.evaluation.runtime import Feeds, Outputs
from worker.compressor.evaluation.tally import Tally
from worker.compressor.graph.evaluation import shared_tensor

MAX_ROWS = 2048
BATCH = 256
#: Standard errors between two networks of which one is surely the better: by chance one pair in forty is as far apart.
SURE = 2.0


@dataclass(frozen=True, order=True)
class Score:
    """Higher is better: `value` first; where few rows tie, the likelihood of the labels or closeness to the original.

    `rows`: how right each row is, by its label, in the judge's order; None without labels.
    """

    value: float
    tie_break: float
    name: str
    rows: np.ndarray | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, float]:
        """The metric for a report, as people read it: errors are positive there."""
        return {self.name: abs(self.value)} if np.isfinite(self.value) else {}

    def is_surely_below(self, other: Score) -> bool:
        """Whether the rows say more than chance would: row by row, by `SURE` standard errors of the difference. Without
        labels, or where either is not finite, whether it is below at all.
        """
        if self.rows is None or other.rows is None or not np.isfinite([self.value, other.value]).all():
            return self < other
        differences = self.rows - other.rows
        return bool(differences.mean() < -SURE * differences.std() / np.sqrt(len(differences)))


class Judge:
    """Scores networks on up to 2,048 validation rows: by the task's metric with labels, else by agreement."""

    def __init__(self, rows: Rows, original: Original, task: str, seed: int) -> None:
        self._task = task
        self._rows = rows.sample(MAX_ROWS, np.random.default_rng([seed, 3]))
        self._original = original

    def __call__(self, run: Callable[[Feeds], Outputs]) -> Score:
        """The score of a network; the worst of all where it does not give finite numbers."""
        tally, likelihoods, rows = Tally(self._task), [], []
        step = min(BATCH, self._original.most_rows or BATCH)
        for at in range(0, len(self._rows), step):
            positions = slice(at, at + step)
            feeds, labels = self._rows.feeds(positions), self._rows.targets(positions)
            before, after = self._original.answers(self._rows, positions, feeds)[0], run(feeds)[0]
            tally.add(before, after, labels)
            if labels is not None and self._task != "none":
                rows.append(_rightness(after, labels, self._task))
            if labels is not None and self._task == "classification":
                likelihoods.append(_log_likelihoods(after, labels))
        score = _score(tally, float(np.concatenate(likelihoods).mean()) if likelihoods else None)
        return replace(score, rows=np.concatenate(rows)) if rows else score


def module_runner(module: Callable[..., tuple[torch.Tensor, ...]], device: torch.device) -> Callable[[Feeds], Outputs]:
    """Run a training graph in evaluation mode on numpy batches."""

    def run(feeds: Feeds) -> Outputs:
        with torch.inference_mode():
            outputs = module(*(shared_tensor(feed).to(device) for feed in feeds))
        return tuple(np.atleast_1d(output.float().cpu().numpy()) for output in outputs)

    return run


def _rightness(output: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """Of each row 1 where its class is right, else 0; of values less the mean of the squared errors."""
    if task == "classification":
        return (output.argmax(-1) == labels).astype(np.float64)
    errors = np.square(np.asarray(output, np.float64) - labels.reshape(output.shape))
    return -errors.reshape(len(errors), -1).mean(1)


def _log_likelihoods(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log of the softmax of each row at its label; of outputs that are probabilities already, their own log."""
    rows = np.arange(len(labels))
    if output.min() >= 0 and np.allclose(output.sum(-1), 1, atol=1e-3):
        return np.log(np.maximum(output[rows, labels], 1e-9))
    shifted = output - output.max(-1, keepdims=True)
    return shifted[rows, labels] - np.log(np.exp(shifted).sum(-1))


def _score(tally: Tally, likelihood: float | None) -> Score:
    figures: dict[str, Any] = tally.figures()
    error = figures["output_error"]
    closeness = -float(error) if error is not None else -np.inf
    if "rmse" in figures:
        name, value = "rmse", -figures["rmse"]
    elif "accuracy" in figures:
        name, value = "accuracy", figures["accuracy"]
    elif figures["agreement"] is not None:
        name, value = "agreement", figures["agreement"]
    else:
        name, value = "output_error", closeness
    if not tally.finite:
        return Score(-np.inf, -np.inf, name)
    return Score(float(value), closeness if likelihood is None else likelihood, name)
