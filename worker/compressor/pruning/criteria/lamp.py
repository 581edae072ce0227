"""LAMP: Lee et al. 2021, Layer-Adaptive Sparsity for the Magnitude-based Pruning (arXiv 2010.07611), of weights and units."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, norms
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Lamp(Criterion):
    """`s_u = |w_u|² / Σ |w_v|²` over all units v of the group that are at least as large: a global threshold shares out."""

    name = "lamp"
    help = "squared weights over those of all larger channels, so that layers compare"
    is_comparable: ClassVar[bool] = True

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return shares(norms(group, evidence, 2))

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        squares = np.square(evidence.tensors[matrix.tensor].astype(np.float64))
        return shares(squares.reshape(-1)).reshape(squares.shape)


def shares(squares: np.ndarray) -> np.ndarray:
    """Each number over the sum of all that are at least as large, `[N]`."""
    order = np.argsort(squares, kind="stable")
    larger = np.cumsum(squares[order][::-1])[::-1]
    found = np.zeros_like(squares)
    found[order] = squares[order] / np.where(larger > 0, larger, 1.0)
    return found
