"""First-order Taylor: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning (arXiv 1906.10771)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Taylor(Criterion):
    """`s_u = mean_b |Σ w · ∂L_b/∂w|` over the weights that read unit u, for batches b: how much the loss moves without it."""

    name = "taylor"
    help = "first-order change of the loss when a channel goes"
    needs: ClassVar[list[str]] = ["data"]
    is_comparable: ClassVar[bool] = True
    structures: ClassVar[tuple[str, ...]] = (*Criterion.structures, "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return np.abs(evidence.gradients[group.id].gates).mean(0)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        weight = evidence.tensors[matrix.tensor].astype(np.float64)
        return np.asarray(np.abs(weight) * evidence.moments[matrix.tensor].size)
