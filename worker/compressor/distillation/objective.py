"""What a training step minimises: `hard · loss(labels) + soft · distance(teacher)`, by what kind of output there is.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.spec.schema import Loss
from worker.compressor.distillation.losses import LOSSES
from worker.compressor.errors import CompressorError

Task = Literal["classification", "regression", "none"]
#: A scalar of a network's outputs, the teacher's, and the labels where there are any.
LossFunction = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None], Tensor]


class Scores(Enum):
    """What the numbers of an output are: logits, probabilities (a softmax lies inside the network), or plain values."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


@dataclass(frozen=True)
class OutputKind:
    """How one output is compared with the teacher's; `spread` is the standard deviation of the teacher's values."""

    scores: Scores
    spread: float

    def logits(self, output: Tensor) -> Tensor:
        """Class scores as logits `[rows, C]`: log-probabilities are logits up to a constant, which softmax ignores."""
        output = output.float().reshape(-1, output.shape[-1])
        return output.clamp_min(1e-9).log() if self.scores is Scores.PROBABILITIES else output


def output_kind(teacher: np.ndarray, task: Task) -> OutputKind | None:
    """Read the kind of an output off the teacher's answers `[N, …]`; None for whole numbers, which have no gradient."""
    if teacher.dtype.kind not in "fV":
        return None
    values = np.asarray(teacher, np.float32)
    spread = max(float(values.std()), 1e-6)
    # Beyond three axes the classes are not the last axis (maps are N, C, H, W), and values are compared as such.
    if task == "regression" or not 2 <= values.ndim <= 3 or values.shape[-1] < 2:
        return OutputKind(Scores.VALUES, spread)
    sums = values.sum(-1, dtype=np.float64)
    is_distribution = values.min() >= 0 and values.max() <= 1 and np.abs(sums - 1).max() < 1e-3
    return OutputKind(Scores.PROBABILITIES if is_distribution else Scores.LOGITS, spread)


class Objective:
    """The loss of one batch. `kinds` has one entry per output that the teacher gives; `loss` None trains on labels alone."""

    def __init__(self, loss: Loss | None, task: Task, kinds: tuple[OutputKind | None, ...]) -> None:
        if all(kind is None for kind in kinds) or (loss is None and kinds[0] is None):
            detail = "the network gives whole numbers only (class numbers, perhaps), which cannot be trained"
            raise CompressorError(
                detail, code="unsupported_output", hint="export it up to its scores", error_class="user"
            )
        self._task = task
        self._kinds = kinds
        self._hard = loss.hard if loss else 1.0
        self._soft = loss.soft if loss else 0.0
        self._soft_loss = LOSSES.get(loss.kind)(loss.temperature) if loss else None

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's outputs count."""
        return self._soft > 0

    def __call__(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """A scalar; `labels` belong to the first output: class numbers `[N]`, or values of its shape."""
        total = torch.zeros((), device=outputs[0].device)
        first = self._kinds[0]
        if self._hard > 0 and labels is not None and first is not None:
            total = total + self._hard * self._labelled(first, outputs[0], labels)
        if self._soft > 0:
            for kind, output, wanted in zip(self._kinds, outputs, teacher, strict=False):
                if kind is not None:
                    total = total + self._soft * self._taught(kind, output, wanted)
        return total

    def _labelled(self, kind: OutputKind, output: Tensor, labels: Tensor) -> Tensor:
        if self._task == "classification":
            return F.cross_entropy(kind.logits(output), labels)
        return F.mse_loss(output.float(), labels.reshape(output.shape).float()) / kind.spread**2

    def _taught(self, kind: OutputKind, output: Tensor, wanted: Tensor) -> Tensor:
        distance = F.mse_loss(output.float(), wanted.float()) / kind.spread**2
        if kind.scores is Scores.VALUES:
            return distance
        assert self._soft_loss is not None
        scores = self._soft_loss(kind.logits(output), kind.logits(wanted))
        # Without a task the last axis may be an embedding, of which a softmax sees neither offset nor scale.
        return scores + distance if self._task == "none" else scores
