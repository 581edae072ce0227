"""Criteria: how much each unit of a coupled group matters, one file each.

Norms are taken over the weights that read a unit, in every layer that does (ThiNet, Luo et al. 2017, arXiv 1707.06342,
chose channels by the next layer, too), not over those that make it: where BatchNorm was folded away, the makers' scale
is that of the normalisation. On a residual network at half of its MACs, after the refit, readers kept 0.4 points more
than the sum over both, and makers alone were as good as random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group


class Criterion(Described, ABC):
    """Scores units: the lower, the sooner a unit goes. Scores of different groups need not be comparable."""

    @abstractmethod
    def scores(self, group: Group, tensors: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """One float64 score of at least 0 per unit of `group`, `[num_units]`; `tensors` are the weights by name."""


CRITERIA: Registry[Criterion] = Registry("criterion", __name__)


# A unit whose makers are below this share of the mean is written so faintly that nobody can read much from it.
FAINT = 0.05


def reader_sums(group: Group, tensors: Mapping[str, np.ndarray], power: int) -> np.ndarray:
    """For each unit the sum of |w|^power over its slice of every weight that reads it, `[num_units]` in float64.

    Each tensor counts alike (its mean over the units is 1). Units that are made with weights near zero count less, those
    made with zeros nothing; units that no matrix reads (the inner axis of attention) are scored by their makers.
    """
    read, made = (_sums(group, tensors, power, role) for role in ("consumes", "produces"))
    if not made.any():
        return read
    faint = np.minimum(made / (FAINT * made.mean()), 1.0)
    return np.where(_are_read(group, tensors), read * faint, made)


def _are_read(group: Group, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each unit whether a matrix reads it, `[num_units]`."""
    found = np.zeros(group.num_units, bool)
    for part in group.slices:
        if part.role == "consumes" and tensors[part.tensor].ndim > 1:
            found[part.units[part.units >= 0]] = True
    return found


def _sums(group: Group, tensors: Mapping[str, np.ndarray], power: int, role: str) -> np.ndarray:
    total = np.zeros(group.num_units)
    for part in group.slices:
        weight = tensors[part.tensor]
        # Vectors (biases) have another scale than the kernels beside them.
        if part.role != role or weight.ndim < 2:
            continue
        sums = np.zeros(group.num_units)
        units = np.atleast_2d(part.units)
        # Each equal part of axis 0 has its own order of units; one part is the whole tensor.
        pieces = np.abs(weight.astype(np.float64)).reshape(len(units), -1, *weight.shape[1:]) ** power
        for row, piece in zip(units, pieces, strict=True):
            per_position = np.moveaxis(piece, part.axis, 0).reshape(len(row), -1).sum(axis=1)
            owned = row >= 0
            np.add.at(sums, row[owned], per_position[owned])
        total += sums / sums.mean() if sums.any() else sums
    return total
