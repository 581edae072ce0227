"""Reconstruction error: Hassibi and Stork 1993, Optimal Brain Surgeon; of structures Kurtic et al. 2023 (arXiv 2302.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, known
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.residuals import Residual


@CRITERIA.register
class Reconstruction(Criterion):
    """`s_u = Σ_l tr(W_u' ((H⁻¹)_uu)⁻¹ W_u) / tr(W' H W)` over the layers l that read unit u, `H = X'X`: the share of each output
    that is lost without the unit when the layer is refitted to what is left; where no refit follows,
    `s_u = Σ_l tr(W_u' H_uu W_u) / tr(W' H W)` (Luo et al. 2017, ThiNet, arXiv 1707.06342). Units go in turn, the cheapest first,
    and each costs what it does once those before it have gone (`elimination`). Of a weight `w² / [H⁻¹]_dd`, as in SparseGPT
    (Frantar and Alistarh 2023, arXiv 2301.00774); the refit that follows solves for all that is left of a layer at once. Of a
    branch the share of the network's answers.
    """

    name = "reconstruction"
    help = (
        "share of the next layers' outputs that is lost with the channel, beyond what a refit brings back if one follows; "
        "of weights SparseGPT's score"
    )
    needs: ClassVar[list[str]] = ["data"]
    is_loss: ClassVar[bool] = True
    structures: ClassVar[tuple[str, ...]] = (*Criterion.structures, "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return known(evidence.costs[group.id], group, evidence)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        seen = evidence.inputs.get(matrix.tensor)
        if seen is not None:
            return seen.costs.astype(np.float64)
        squares = np.square(evidence.tensors[matrix.tensor].astype(np.float64))
        return np.asarray(squares / max(squares.sum(), 1e-30))

    def branch_score(
        self, branch: Residual, matrices: Sequence[Matrix], evidence: Evidence, rng: np.random.Generator
    ) -> float:
        """See `Criterion.branch_score`."""
        return evidence.influences.error(branch)
