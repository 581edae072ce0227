"""Activation norm: Hu et al. 2016, Network Trimming (arXiv 1607.03250), and Molchanov et al. 2017 (arXiv 1611.06440).

Of branches Block Influence: Men et al. 2024, ShortGPT (arXiv 2403.03853).
"""

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
class Activation(Criterion):
    """`s_u = |x_u|₂`, of what layers read of unit u; of a branch f `1 - cos(x, x + f(x))`, how far it turns what passes by."""

    name = "activation"
    help = "size of a channel's values on samples; of a branch how far it turns what it is added to"
    needs: ClassVar[list[str]] = ["data"]
    structures: ClassVar[tuple[str, ...]] = ("channels", "layers")

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return known(evidence.activations.sizes[group.id], group, evidence)

    def branch_score(
        self, branch: Residual, matrices: Sequence[Matrix], evidence: Evidence, rng: np.random.Generator
    ) -> float:
        """See `Criterion.branch_score`."""
        return evidence.influences.turn(branch)
