"""Criteria: how much each unit of a coupled group matters, one file each.

Norms are taken over the weights that read a unit, in every layer that does (ThiNet, Luo et al. 2017, arXiv 1707.06342,
chose channels by the next layer, too), not over those that make it, unless `combine` says so: where BatchNorm was folded
away, the makers' scale is that of the normalisation. On a residual network at half of its MACs, after the refit, readers
kept 0.4 points more than the sum over both, and makers alone were as good as random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker.compressor.plugins import Described
from worker.compressor.pruning.combining import unit_sums
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.matrices import Matrix
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.residuals import Residual


class Criterion(Described, ABC):
    """Scores units: the lower, the sooner a unit goes.

    `is_comparable`: scores of different groups are in one unit, a share of the loss perhaps; else only ratios within a
    group mean something. `is_loss`: the score of a unit is what is lost when its turn to go comes, so that those of all units
    that go add up, and decide between groups by loss per count saved. `is_control`: it knows nothing, and a job that decides
    how much of each group goes does not help it by what it measures.
    """

    is_comparable: ClassVar[bool] = False
    is_loss: ClassVar[bool] = False
    is_control: ClassVar[bool] = False

    #: The structures that it scores: units of coupled groups (`channels`), single weights (`weights`, `blocks`, `n:m`),
    #: and where they say so whole residual branches (`layers`).
    structures: ClassVar[tuple[str, ...]] = ("channels", "weights", "blocks", "n:m")

    @abstractmethod
    def scores(self, group: Group, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """One float64 score of at least 0 per unit of `group`, `[num_units]`.

        Raises:
            DataNeeded: where it looks at samples, and there are none.
        """

    def weight_scores(self, matrix: Matrix, evidence: Evidence, rng: np.random.Generator) -> np.ndarray:
        """One float64 score of at least 0 for every number of a matrix, in its shape; absolute values unless it says more.

        Raises:
            DataNeeded: as `scores`.
        """
        return np.abs(evidence.tensors[matrix.tensor].astype(np.float64))

    def branch_score(
        self, branch: Residual, matrices: Sequence[Matrix], evidence: Evidence, rng: np.random.Generator
    ) -> float:
        """What is lost with a residual branch, at least 0; `matrices` are those that it multiplies with.

        Unless a criterion says more it is the mean over these of `weight_scores`, or their sum where that is in one unit.

        Raises:
            DataNeeded: as `scores`.
        """
        scores = [self.weight_scores(matrix, evidence, rng) for matrix in matrices]
        total = float(sum(array.sum() for array in scores))
        return total if self.is_comparable else total / max(1, sum(array.size for array in scores))


CRITERIA: Registry[Criterion] = Registry("criterion", __name__)


# A unit whose makers are below this share of the mean is written so faintly that nobody can read much from it.
FAINT = 0.05


def norms(group: Group, evidence: Evidence, power: int) -> np.ndarray:
    """For each unit the sum of |w|^power over its slices, combined as the job says, `[num_units]` in float64.

    Each tensor counts alike (its mean over the units is 1). Units that are made with weights near zero count less, those
    made with zeros nothing; units that no matrix reads (the inner axis of attention) are scored by their makers.
    """
    powers = {part.tensor: np.abs(evidence.tensors[part.tensor].astype(np.float64)) ** power for part in group.slices}
    found = unit_sums(group, powers, evidence.combine, alike=True)
    if evidence.combine == "makers":
        return found
    made = unit_sums(group, powers, "makers", alike=True)
    return found * np.minimum(made / (FAINT * made.mean()), 1.0) if made.any() else found


def known(found: np.ndarray, group: Group, evidence: Evidence) -> np.ndarray:
    """What samples said of each unit; units of which they say nothing (NaN) get the share that their norms have."""
    missing = np.isnan(found)
    if not missing.any():
        return found
    plain = norms(group, evidence, 2)
    told, basis = found[~missing], plain[~missing]
    scale = told.mean() / basis.mean() if len(told) and basis.any() else 1.0
    return np.where(missing, plain * scale, found)
