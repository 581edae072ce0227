"""Activation norm: Hu et al. 2016, Network Trimming (arXiv 1607.03250), and Molchanov et al. 2017 (arXiv 1611.06440)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, known
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Activation(Criterion):
    """`s_u = |x_u|₂`, of what layers read of unit u."""

    name = "activation"
    help = "size of a channel's values on samples"
    needs: ClassVar[list[str]] = ["data"]
    structures: ClassVar[tuple[str, ...]] = ("channels",)

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return known(evidence.activations.sizes[group.id], group, evidence)
