"""L1 regularisation of single weights: Tibshirani 1996; Han et al. 2015 (arXiv 1506.02626) before pruning."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worker.compressor.pruning.penalties import PENALTIES, Penalty, Trainee


@PENALTIES.register
class L1(Penalty):
    """`Σ |w|` over the numbers of every matrix; biases and normalisations are left out."""

    name = "l1"
    help = "sum of the absolute weights"

    def of(self, trainee: Trainee) -> Callable[[], Tensor]:
        """See `Penalty.of`."""
        weights = [parameter for _, parameter in trainee.parameters() if parameter.ndim > 1]
        return lambda: torch.stack([weight.float().abs().sum() for weight in weights]).sum()
