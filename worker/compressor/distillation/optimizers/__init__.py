"""Optimisers, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry


class OptimizerKind(Described, ABC):
    """Makes a torch optimiser; the learning rate is set anew before every step by the schedule."""

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """An optimiser over the parameters that are trained."""


OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer", __name__)
