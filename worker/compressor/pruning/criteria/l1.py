"""L1 norm: Li et al. 2017, Pruning Filters for Efficient ConvNets (arXiv 1608.08710), over the readers of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class L1(Criterion):
    """`s_u = Σ |w|` over the weights that read unit u."""

    name = "l1"
    help = "sum of the absolute weights that read a channel"
    structures: ClassVar[tuple[str, ...]] = (*Criterion.structures, "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return norms(group, evidence, 1)
