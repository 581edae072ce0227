"""Network slimming: Liu et al. 2017 (arXiv 1708.06519)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worker.compressor.pruning.penalties import PENALTIES, Penalty, Trainee


@PENALTIES.register
class BatchNormScale(Penalty):
    """`Σ |γ|` over all BatchNorms; where these were folded away they are put in for the training, and folded again."""

    name = "bn_scale"
    help = "sum of the absolute scales of BatchNorm, which is put in where it was folded away"
    needs_batchnorm = True

    def of(self, trainee: Trainee) -> Callable[[], Tensor]:
        """See `Penalty.of`."""
        names = {node.inputs[1] for node in trainee.network.nodes if node.op == "BatchNormalization"}
        scales = [parameter for tensor, parameter in trainee.parameters() if tensor in names]
        return lambda: torch.cat([scale.float().abs() for scale in scales]).sum()
