"""Wanda: Sun et al. 2023, A Simple and Effective Pruning Approach (arXiv 2306.11695), summed over a unit's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, known
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class Wanda(Criterion):
    """`s_u = Σ |w| · |x|₂` over the weights that read unit u and what they read."""

    name = "wanda"
    help = "absolute weights times the size of what they read"
    needs: ClassVar[list[str]] = ["data"]

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        return known(evidence.activations.norms[group.id], group, evidence)

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.weight_scores`."""
        weight, seen = np.abs(evidence.tensors[matrix.tensor].astype(np.float64)), evidence.inputs.get(matrix.tensor)
        rows = np.moveaxis(weight if seen is None else seen.norms, matrix.outputs, 0)
        flat = rows.reshape(len(rows), -1)
        # Weights compare within the row of one output, as published: only their order there counts.
        rank = (np.argsort(np.argsort(flat, axis=1, kind="stable"), axis=1, kind="stable") + 1) / flat.shape[1]
        return np.moveaxis(rank.reshape(rows.shape), 0, matrix.outputs)
