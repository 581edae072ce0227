"""L2 norm over a coupled group (Fang et al. 2023, DepGraph, arXiv 2301.12900), of its readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.residuals import Residual


@CRITERIA.register
class L2(Criterion):
    """`s_u = sqrt(Σ w²)` over the weights that read unit u."""

    name = "l2"
    help = "root of the summed squares of the weights that read a channel"
    structures: ClassVar[tuple[str, ...]] = (*Criterion.structures, "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return np.sqrt(norms(group, evidence, 2))

    def branch_score(
        self, branch: Residual, matrices: Sequence[Matrix], evidence: Evidence, rng: np.random.Generator
    ) -> float:
        """See `Criterion.branch_score`."""
        squares = [np.square(evidence.tensors[matrix.tensor].astype(np.float64)) for matrix in matrices]
        size = max(1, sum(array.size for array in squares))
        return float(np.sqrt(sum(array.sum() for array in squares) / size))
