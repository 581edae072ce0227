"""How long a network takes, from a table of measured layers: every layer that multiplies, by itself, at several widths.

Between the measured widths the time of a layer is `a + b * values + c * macs`, values being the elements that it reads and
makes, with a, b and c fitted to its measured points and none below 0: so it rises with every channel, as allocation needs
it. (Yang et al. 2018, NetAdapt, arXiv 1804.03230, for tables of layers; Kurtic et al. 2023, ZipLM, arXiv 2302.04089.)

What runs between the layers, and what a runtime saves by running them together, is not in the table: `Line` ties its sums
to whole networks that were measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from worker.compressor.graph.cost import CostModel, Kept, Work


@dataclass(frozen=True)
class Law:
    """The seconds of one layer: `weights` of 1, of the values that it moves, and of its multiply-accumulates."""

    weights: np.ndarray

    def __call__(self, features: np.ndarray) -> float:
        return float(features @ self.weights)


def fit(features: np.ndarray, seconds: np.ndarray) -> Law:
    """The law with no weight below 0 that misses the points, `[N, 3]` and `[N]`, by least, relative to each.

    Of so few weights every subset that may be above 0 can be tried.
    """
    rows, best = features / seconds[:, None], (math.inf, np.zeros(features.shape[1]))
    for number in range(1, features.shape[1] + 1):
        for subset in itertools.combinations(range(features.shape[1]), number):
            weights = np.zeros(features.shape[1])
            scale = np.maximum(np.abs(rows[:, subset]).max(0), 1e-300)
            weights[list(subset)] = np.linalg.lstsq(rows[:, subset] / scale, np.ones(len(rows)), rcond=None)[0] / scale
            error = float(np.square(rows @ weights - 1).sum())
            if (weights >= 0).all() and error < best[0] - 1e-12:
                best = (error, weights)
    return Law(best[1])


def features_of(work: Work, constants: frozenset[str]) -> np.ndarray:
    """What a law looks at: 1, the elements of what goes in (but for constants) and comes out, the multiply-accumulates."""
    names = {name for name in (*work.node.inputs, *work.node.outputs) if name and name not in constants}
    return np.array([1.0, sum(math.prod(work.shapes[name]) for name in names), work.macs])


@dataclass(frozen=True)
class LatencyTable:
    """Laws by layer (its first output); `constants` are values that do not depend on the network's inputs."""

    laws: Mapping[str, Law]
    constants: frozenset[str]

    def seconds(self, model: CostModel, kept: Kept) -> float:
        """The sum over the layers of a network with these units kept."""
        found = ((self.laws.get(work.node.outputs[0]), work) for work in model.work(kept))
        return sum(law(features_of(work, self.constants)) for law, work in found if law is not None)


@dataclass
class Line:
    """From sums of the table to times of whole networks, by a straight line through the two measured ones that matter."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, total: float, wanted: float) -> float:
        """The time that goes with a sum; `wanted` is the time around which it should be right."""
        nearest, other = self._around(wanted)
        through_zero = nearest[1] / nearest[0]
        is_apart = (other[0] - nearest[0]) * (other[1] - nearest[1]) > 0
        slope = (other[1] - nearest[1]) / (other[0] - nearest[0]) if is_apart else through_zero
        is_between = min(nearest[1], other[1]) <= wanted <= max(nearest[1], other[1])
        # Beyond points so close that noise is between them, their slope says nothing.
        if not is_between and not 0.3 <= slope / through_zero <= 3:
            slope = through_zero
        return nearest[1] + slope * (total - nearest[0])

    def _around(self, wanted: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The measured network next to the wanted time, and the next one, if possible from the other side of it."""
        nearest, *others = sorted(self.points, key=lambda point: abs(point[1] - wanted))
        beyond = [point for point in others if (point[1] > wanted) != (nearest[1] > wanted)]
        return nearest, (beyond or others or [nearest])[0]
