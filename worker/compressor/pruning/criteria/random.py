"""Random scores: the control that any other criterion must beat (Blalock et al. 2020, arXiv 2003.03033)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.residuals import Residual


@CRITERIA.register
class Random(Criterion):
    """`s_u` uniform in [0, 1), drawn by the job's seed."""

    name = "random"
    help = "channels drawn at random by the seed, as a control"
    is_control: ClassVar[bool] = True
    structures: ClassVar[tuple[str, ...]] = (*Criterion.structures, "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return rng.random(group.num_units)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        return rng.random(evidence.tensors[matrix.tensor].shape)

    def branch_score(
        self, branch: Residual, matrices: Sequence[Matrix], evidence: Evidence, rng: np.random.Generator
    ) -> float:
        """See `Criterion.branch_score`."""
        return float(rng.random())
