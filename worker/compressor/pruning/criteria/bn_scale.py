"""Network slimming: Liu et al. 2017 (arXiv 1708.06519), by the scales of BatchNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.pruning.criteria import CRITERIA, Criterion, known
from worker.compressor.pruning.evidence import Evidence

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


@CRITERIA.register
class BatchNormScale(Criterion):
    """`s_u = Σ |γ_u|` over the BatchNorms of unit u; where these were folded away, the standard deviation of what makes the
    unit, on samples, which is the same number.
    """

    name = "bn_scale"
    help = "scale of a channel's BatchNorm; where that was folded away, the spread of its values on samples"
    needs: ClassVar[list[str]] = ["batchnorm or data"]
    structures: ClassVar[tuple[str, ...]] = ("channels",)

    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """See `Criterion.scores`."""
        scales = {(node.name, node.inputs[1]) for node in evidence.network.nodes if node.op == "BatchNormalization"}
        found, seen = np.zeros(group.num_units), np.zeros(group.num_units, bool)
        for part in group.slices:
            if (part.node, part.tensor) in scales:
                units = part.units.reshape(-1)
                owned = units >= 0
                np.add.at(found, units[owned], np.abs(evidence.tensors[part.tensor].astype(np.float64))[owned])
                seen[units[owned]] = True
        if seen.all():
            return found
        return known(np.where(seen, found, evidence.activations.spreads[group.id]), group, evidence)
