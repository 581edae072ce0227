"""Knowledge distillation: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from worker.compressor.distillation.losses import LOSSES, SoftLoss


@LOSSES.register
class KullbackLeibler(SoftLoss):
    """`T² · mean_n Σ_c p_T(c) · log(p_T(c) / p_S(c))` with `p = softmax(logits / T)`.

    Gradients of soft targets shrink as 1/T²; the factor keeps their weight beside a hard loss as T changes.
    """

    name = "kl"
    help = "Kullback-Leibler divergence between the softened scores, times T squared"
    needs: ClassVar[list[str]] = ["data"]

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """See `SoftLoss.__call__`."""
        scale = 1.0 / self.temperature
        student, teacher = F.log_softmax(student * scale, -1), F.log_softmax(teacher * scale, -1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * self.temperature**2
