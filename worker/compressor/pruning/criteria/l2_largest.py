"""The largest first: a control that any sound criterion must beat by far."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class L2Largest(Criterion):
    """`s_u = max_v |w_v| - |w_u|` over the L2 norms of `l2`: the units that it would keep longest go first."""

    name = "l2_largest"
    help = "the channels with the largest weights go first, as a control"
    is_control: ClassVar[bool] = True

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        sizes = np.sqrt(norms(group, evidence, 2))
        return np.asarray(sizes.max() - sizes)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        sizes = np.abs(evidence.tensors[matrix.tensor].astype(np.float64))
        return np.asarray(sizes.max() - sizes)
