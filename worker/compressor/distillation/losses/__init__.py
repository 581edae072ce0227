"""Soft losses: how far a student's scores are from its teacher's, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry


class SoftLoss(Described, ABC):
    """Compares class scores (logits) of student and teacher at one temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over the rows of logits `[N, C]` each; a scalar that back-propagates into `student`."""


LOSSES: Registry[SoftLoss] = Registry("loss", __name__)
