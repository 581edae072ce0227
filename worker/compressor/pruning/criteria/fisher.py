"""Fisher information of gates: Theis et al. 2018 (arXiv 1801.05787); Kwon et al. 2022 (arXiv 2204.09656)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Fisher(Criterion):
    """`s_u = mean_b (Σ w · ∂L_b/∂w)²` over the weights that read unit u: the curvature along a gate on the unit."""

    name = "fisher"
    help = "squared first-order change of the loss, summed over a channel's weights first"
    needs: ClassVar[list[str]] = ["data"]
    is_comparable: ClassVar[bool] = True

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return np.square(evidence.gradients[group.id].gates).mean(0)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        weight = evidence.tensors[matrix.tensor].astype(np.float64)
        return np.asarray(np.square(weight) * evidence.moments[matrix.tensor].square)
