"""What a network loses when one group of channels is cut and all others are whole: measured, and as a curve over the width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from worker.compressor.errors import GraphError

if TYPE_CHECKING:
    from worker.compressor.evaluation.exam import Figures
    from worker.compressor.graph.channels.grouping import Analysis, Group
    from worker.compressor.graph.network import Network
    from worker.compressor.pruning.choices import Choice

#: Shares of a group's units that are cut to draw its curve, where nobody says otherwise.
RATIOS = (0.25, 0.5, 0.75)
# What a network that gives no finite numbers has lost: more than any that does.
WORTHLESS = 1e9

#: By group: what the network is predicted to lose when that group alone keeps so many units.
Losses = Mapping[int, Callable[[int], float]]


class Kept(Protocol):
    """Figures that other jobs measured on the same bytes."""

    def get(self, group: Group, units: np.ndarray) -> Figures | None:
        """The figures of a cut, None where they are not known."""

    def put(self, group: Group, units: np.ndarray, figures: Figures) -> None:
        """Remember them."""


@dataclass(frozen=True)
class Point:
    """One cut of one group: the `ratio` of units that was asked to go, the number that stays, and what came of it.

    `figures` is None where the group cannot be cut by itself.
    """

    ratio: float
    num_kept: int
    figures: Figures | None


@dataclass(frozen=True)
class Meter:
    """Measures cuts of one group at a time.

    `mend` refits the layers that read the group, by name, on samples; `examine` says what a network has lost against the
    original; `whole` is that of the network as it is. `told` hears how much of the work is done.
    """

    network: Network
    mend: Callable[[Network, frozenset[str]], Network]
    examine: Callable[[Network], Figures]
    whole: Figures
    kept: Kept
    told: Callable[[float], None]

    def points(self, analysis: Analysis, choice: Choice, ratios: Sequence[float]) -> list[Point]:
        """What is lost at each ratio; of the group's units at least as many stay as are left of the ratio."""
        found = []
        for ratio in ratios:
            count = choice.at_least((1 - ratio) * choice.num_units - 1e-9)
            units = choice.units(count)
            found.append(Point(ratio, count, self._figures(analysis, analysis.groups[choice.group], units)))
        return found

    def losses(self, analysis: Analysis, choices: Sequence[Choice]) -> Losses:
        """The curve of each group, by the divergence of the outputs."""
        found = {}
        for done, choice in enumerate(choices):
            found[choice.group] = Curve(choice.num_units, self.whole, self.points(analysis, choice, RATIOS))
            self.told((done + 1) / len(choices))
        return found

    def _figures(self, analysis: Analysis, group: Group, units: np.ndarray) -> Figures | None:
        from worker.compressor.graph.surgery import cut

        if len(units) == group.num_units:
            return self.whole
        known = self.kept.get(group, units)
        if known is not None:
            return known
        try:
            made = cut(self.network, analysis, {group.id: units}).network
        except GraphError:
            return None
        readers = frozenset(piece.node for piece in group.slices if piece.role == "consumes")
        figures = self.examine(self.mend(made, readers))
        self.kept.put(group, units, figures)
        return figures


class Curve:
    """The predicted loss for any number of kept units, above that of all of them.

    It never falls as units go. Between two points its root is linear: the error of the outputs grows with what is left out,
    and the divergence with the square of the error; beyond the last point the root goes on as steeply.
    """

    def __init__(self, num_units: int, whole: Figures, points: Sequence[Point]) -> None:
        measured = {num_units: 0.0}
        for point in points:
            loss = _divergence(point.figures) - _divergence(whole)
            measured[point.num_kept] = max(loss, 0.0) if point.num_kept < num_units else 0.0
        self._kept = np.array(sorted(measured, reverse=True), float)
        self._roots = np.sqrt(np.maximum.accumulate([measured[int(kept)] for kept in self._kept]))

    def __call__(self, kept: int) -> float:
        """The loss with so many units."""
        beyond = self._kept[-1] - kept
        if beyond <= 0:
            return float(np.interp(-kept, -self._kept, self._roots)) ** 2
        slope = np.diff(self._roots[-2:]) / -np.diff(self._kept[-2:]) if len(self._kept) > 1 else np.zeros(1)
        return float(self._roots[-1] + slope[0] * beyond) ** 2


def _divergence(figures: Figures | None) -> float:
    value = figures["divergence"] if figures is not None else None
    return WORTHLESS if value is None else value
