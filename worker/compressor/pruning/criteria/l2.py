"""L2 norm over a coupled group (Fang et al. 2023, DepGraph, arXiv 2301.12900), of its readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class L2(Criterion):
    """`s_u = sqrt(Σ w²)` over the weights that read unit u."""

    name = "l2"
    help = "root of the summed squares of the weights that read a channel"

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return np.sqrt(norms(group, evidence, 2))
