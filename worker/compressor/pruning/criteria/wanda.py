"""Wanda: Sun et al. 2023, A Simple and Effective Pruning Approach (arXiv 2306.11695), summed over a unit's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, known
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Wanda(Criterion):
    """`s_u = Σ |w| · |x|₂` over the weights that read unit u and what they read."""

    name = "wanda"
    help = "absolute weights times the size of what they read"
    needs: ClassVar[list[str]] = ["data"]

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return known(evidence.activations.norms[group.id], group, evidence)
