"""Geometric median: He et al. 2019, Filter Pruning via Geometric Median (arXiv 1811.00250), over the readers of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.combining import distances
from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Fpgm(Criterion):
    """`s_u = Σ_v |w_u - w_v|₂`: a unit near all others is one that they can replace."""

    name = "fpgm"
    help = "distance to all other channels: those in the middle can be replaced"
    structures: ClassVar[tuple[str, ...]] = ("channels",)

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        found = distances(group, evidence.tensors, evidence.combine)
        return found if found.any() else norms(group, evidence, 2)
