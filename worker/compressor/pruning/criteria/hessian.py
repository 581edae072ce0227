"""Optimal brain damage: LeCun, Denker and Solla 1990, with the diagonal of the empirical Fisher for the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Hessian(Criterion):
    """`s_u = ½ · Σ w² · h` over the weights that read unit u, `h = mean_b (∂L_b/∂w)²`."""

    name = "hessian"
    help = "second-order change of the loss when a channel goes, each weight by itself"
    needs: ClassVar[list[str]] = ["data"]
    is_comparable: ClassVar[bool] = True

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return np.asarray(0.5 * evidence.gradients[group.id].curvatures.mean(0))

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        weight = evidence.tensors[matrix.tensor].astype(np.float64)
        return np.asarray(0.5 * np.square(weight) * evidence.moments[matrix.tensor].square)
