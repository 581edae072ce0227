"""Criteria: how much each unit of a coupled group matters, one file each.

A score is over all weights that go when the unit goes (its producers and its consumers), not over one layer:
DepGraph, Fang et al. 2023 (arXiv 2301.12900), found this worth half a point at twice the speed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.channels import Group


class Criterion(Described, ABC):
    """Scores units: the lower, the sooner a unit goes. Scores of different groups need not be comparable."""

    @abstractmethod
    def scores(self, group: Group, tensors: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """One float64 score of at least 0 per unit of `group`, `[num_units]`; `tensors` are the weights by name."""


CRITERIA: Registry[Criterion] = Registry("criterion", __name__)


def power_sums(group: Group, tensors: Mapping[str, np.ndarray], power: int) -> np.ndarray:
    """For each unit the sum of |w|^power over its slices of every producer and consumer, `[num_units]` in float64.

    Vectors (biases, BatchNorm) are left out: their scale says nothing about that of the kernels beside them.
    """
    sums = np.zeros(group.num_units)
    for part in group.slices:
        weight = tensors[part.tensor]
        if part.role == "follows" or weight.ndim < 2:
            continue
        units = np.atleast_2d(part.units)
        # Each equal part of axis 0 has its own order of units; one part is the whole tensor.
        pieces = np.abs(weight.astype(np.float64)).reshape(len(units), -1, *weight.shape[1:]) ** power
        for row, piece in zip(units, pieces, strict=True):
            per_position = np.moveaxis(piece, part.axis, 0).reshape(len(row), -1).sum(axis=1)
            owned = row >= 0
            np.add.at(sums, row[owned], per_position[owned])
    return sums
