"""What one step of training sees: inputs, and what the network should say to them.

Shapes: B rows of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.compressor.data.dataset import Rows
from worker.compressor.data.mixing import mixed, shares
from worker.compressor.evaluation.original import Original
from worker.compressor.graph.evaluation import shared_tensor


@dataclass(frozen=True)
class Lesson:
    """One batch: `inputs` of B rows each, `labels` where there are any, `taught` what the teacher says."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    taught: tuple[Tensor, ...]


class Lessons(ABC):
    """Rows to learn from, by position."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def at(self, positions: np.ndarray, rng: np.random.Generator) -> Lesson:
        """The batch of these positions `[B]`; what is drawn for it comes from `rng`."""


class AnsweredRows(Lessons):
    """The rows as they are, with their labels, and the original's answers where a teacher is asked for."""

    def __init__(self, rows: Rows, device: torch.device, original: Original | None) -> None:
        super().__init__(rows, device)
        self._original = original

    def at(self, positions: np.ndarray, rng: np.random.Generator) -> Lesson:
        """See `Lessons.at`."""
        feeds, labels = self.rows.feeds(positions), self.rows.targets(positions)
        taught = self._original.answers(self.rows, positions, feeds) if self._original else ()
        return Lesson(
            tuple(to_input(feed, self.device) for feed in feeds),
            None if labels is None else _labels(labels).to(self.device),
            tuple(torch.from_numpy(np.ascontiguousarray(answer)).to(self.device) for answer in taught),
        )


class MixedRows(Lessons):
    """Rows without labels, each with a part of another of its batch, answered by `teacher` while training.

    So few rows serve for long: a student of the same 512 rows learns them by heart. See `mixing`.
    """

    def __init__(self, rows: Rows, device: torch.device, teacher: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__(rows, device)
        self._teacher = teacher

    def at(self, positions: np.ndarray, rng: np.random.Generator) -> Lesson:
        """See `Lessons.at`."""
        order, parts = rng.permutation(len(positions)), shares(len(positions), rng)
        feeds = self.rows.feeds(positions)
        inputs = tuple(to_input(mixed(feed, feed[order], parts), self.device) for feed in feeds)
        with torch.no_grad():
            return Lesson(inputs, None, self._teacher(*inputs))


def to_input(feed: np.ndarray, device: torch.device) -> Tensor:
    """The feed as a tensor, pictures channel by channel for every pixel, as networks in training have them."""
    tensor = shared_tensor(feed).to(device)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _labels(labels: np.ndarray) -> Tensor:
    is_integer = labels.dtype.kind in "iub"
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64 if is_integer else np.float32))
