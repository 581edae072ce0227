"""AdamW: Loshchilov and Hutter 2019 (arXiv 1711.05101)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from worker.compressor.distillation.optimizers import OPTIMIZERS, OptimizerKind


@OPTIMIZERS.register
class AdamW(OptimizerKind):
    """Its step size does not depend on the scale of gradients, so networks whose BatchNorm was folded away train as well."""

    name = "adamw"
    help = "Adam with decoupled weight decay; also right where BatchNorm was folded away"

    def build(self, parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """See `OptimizerKind.build`."""
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
