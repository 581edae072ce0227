"""The figures of a network over many batches, in bounded memory: metric, agreement, error, finiteness, collapse.

Everything is about the first output. Counting is exact, so that anyone who counts again gets the same number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worker.compressor.errors import DataError


class Tally:
    """Adds up batches of the original's outputs, the outputs that are judged, and labels."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._rows = self._scored = self._agreeing = self._correct = 0
        self._squares = self._wanted = self._wanted_squares = self._values = 0.0
        self._label_squares = self._label_values = 0.0
        self._has_classes = self._labelled = False
        self._winners: set[int] = set()
        self._winners_before: set[int] = set()
        self._spans: list[_Span] = []
        self.finite = True

    def add(self, before: np.ndarray, after: np.ndarray, labels: np.ndarray | None) -> None:
        """One batch `[N, …]` of the original's first output and of the judged network's.

        Raises:
            DataError: `label_mismatch` where labels do not fit the output.
        """
        before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
        self.finite = self.finite and bool(np.isfinite(after).all())
        after = np.nan_to_num(after, nan=0.0, posinf=0.0, neginf=0.0) if not self.finite else after
        self._rows += len(after)
        self._compare(before, after)
        self._watch(before, after)
        if labels is not None and self._task != "none":
            self._labelled = True
            self._score(after, labels)

    def figures(self) -> dict[str, Any]:
        """`agreement` (None where an output has one element), `output_error`, and `accuracy` or `rmse` where there are labels.

        `output_error` is the root of the mean squared difference over the standard deviation of the original's output.
        """
        variance = self._wanted_squares / max(self._values, 1) - (self._wanted / max(self._values, 1)) ** 2
        error = math.sqrt(self._squares / max(self._values, 1))
        found: dict[str, Any] = {
            "agreement": self._agreeing / max(self._scored, 1) if self._has_classes else None,
            "output_error": error / math.sqrt(variance) if variance > 0 else (0.0 if error == 0 else None),
        }
        if self._labelled and self._task == "classification":
            found["accuracy"] = self._correct / max(self._rows, 1)
        elif self._labelled:
            found["rmse"] = math.sqrt(self._label_squares / max(self._label_values, 1))
        return found

    def collapsed(self) -> str | None:
        """Why the judged network is worth nothing, or None: not finite, constant, one class where there were several."""
        if not self.finite:
            return "its output is not finite"
        if self._rows > 1 and self._spans and self._spans[1].is_constant and not self._spans[0].is_constant:
            return "its output is the same for every sample"
        if self._has_classes and len(self._winners) == 1 < len(self._winners_before):
            return f"it answers one class for every sample, where the original gave {len(self._winners_before)}"
        return None

    def _compare(self, before: np.ndarray, after: np.ndarray) -> None:
        self._squares += float(np.square(after - before).sum())
        self._wanted += float(before.sum())
        self._wanted_squares += float(np.square(before).sum())
        self._values += before.size
        if before.ndim > 1 and before.shape[-1] > 1:
            self._has_classes = True
            winners_before, winners = before.argmax(-1), after.argmax(-1)
            self._agreeing += int((winners_before == winners).sum())
            self._scored += winners.size
            self._winners_before |= {int(c) for c in np.unique(winners_before)}
            self._winners |= {int(c) for c in np.unique(winners)}

    def _watch(self, before: np.ndarray, after: np.ndarray) -> None:
        if not self._spans:
            self._spans = [_Span(before[0]), _Span(after[0])]
        for span, values in zip(self._spans, (before, after), strict=True):
            span.add(values)

    def _score(self, after: np.ndarray, labels: np.ndarray) -> None:
        if self._task == "classification":
            check_classes(after, labels)
            self._correct += int((after.argmax(-1) == labels).sum())
            return
        if labels.size != after.size:
            detail = f"targets of shape {list(labels.shape[1:])} a row do not fit an output of {list(after.shape[1:])}"
            raise DataError(detail, code="label_mismatch")
        self._label_squares += float(np.square(after - labels.reshape(after.shape)).sum())
        self._label_values += labels.size


class _Span:
    """Whether all rows are the same, up to what rounding makes of one sum."""

    def __init__(self, first: np.ndarray) -> None:
        self._first = first
        self._size = float(np.abs(first).max(initial=0.0))
        self._difference = 0.0

    def add(self, values: np.ndarray) -> None:
        self._difference = max(self._difference, float(np.abs(values - self._first).max(initial=0.0)))
        self._size = max(self._size, float(np.abs(values).max(initial=0.0)))

    @property
    def is_constant(self) -> bool:
        return self._difference <= 1e-6 * self._size


def check_classes(output: np.ndarray, labels: np.ndarray) -> None:
    """Refuse class numbers that the first output has no score for.

    Raises:
        DataError: `label_mismatch`, naming both counts.
    """
    if output.ndim != 2:
        detail = f"classification needs one row of scores per sample; the first output has {list(output.shape[1:])}"
        raise DataError(detail, code="label_mismatch", hint="set task: none to judge by agreement with the original")
    largest = int(labels.max(initial=0))
    if largest >= output.shape[-1]:
        count = output.shape[-1]
        detail = f"the labels name class {largest}, and the network has {count} outputs: classes 0 to {count - 1}"
        raise DataError(detail, code="label_mismatch", hint="use the classes that the network was trained on")
