"""Which of some parts to take out as a whole, so that every target is met by count and as little score as possible is lost.

A knapsack over few, coarse parts: greedily by score per cost, then exchanged one for one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from worker.compressor.errors import TargetUnreachable

#: What is left of the network, by name, without these parts.
Costs = Callable[[Collection[int]], Mapping[str, int]]
Parts = frozenset[int]

#: How far below a ceiling a choice may stay in any case, as a share of the whole.
TOLERANCE = 0.01


def drop(scores: np.ndarray, costs: Costs, ceilings: Mapping[str, float]) -> list[int]:
    """The parts that go, `scores` `[N]` being what is lost with each: none where the ceilings are met already.

    No part that goes could stay. The result is at most a percentage point, or the cost of the finest part, below the
    nearest ceiling, where exchanges of two parts lead there; then none would lose less score.

    Raises:
        TargetUnreachable: where a ceiling is not met without all of them.
    """
    search = _Search(scores, costs, ceilings)
    everything = frozenset(range(len(scores)))
    if not search.fits(everything):
        raise _unreachable(costs(everything), ceilings)
    removed = search.put_back(search.greedy())
    while (better := search.exchanged(removed)) is not None:
        removed = search.put_back(better)
    return sorted(removed)


class _Search:
    """Choices as sets of the parts that go."""

    def __init__(self, scores: np.ndarray, costs: Costs, ceilings: Mapping[str, float]) -> None:
        self._scores, self._costs, self._ceilings = scores, costs, ceilings
        self._whole = costs(())
        singles = [costs((part,)) for part in range(len(scores))]
        #: What each part costs, as a share of the whole.
        self._shares = [{name: 1 - left[name] / self._whole[name] for name in ceilings} for left in singles]

    def fits(self, removed: Parts) -> bool:
        """Whether every ceiling is met."""
        left = self._costs(removed)
        return all(left[name] <= ceiling for name, ceiling in self._ceilings.items())

    def greedy(self) -> Parts:
        """Parts with the least score per cost, until it fits."""
        too_much = {n: 1 - most / self._whole[n] for n, most in self._ceilings.items() if self._whole[n] > most}
        gains = [sum(shares[name] / more for name, more in too_much.items()) for shares in self._shares]
        useful = [part for part, gain in enumerate(gains) if gain > 0]
        removed = Parts()
        for part in sorted(useful, key=lambda part: self._scores[part] / gains[part]):
            if self.fits(removed):
                break
            removed |= {part}
        return removed

    def put_back(self, removed: Parts) -> Parts:
        """Without what need not go, the highest scores first."""
        for part in sorted(removed, key=lambda part: -self._scores[part]):
            if self.fits(removed - {part}):
                removed -= {part}
        return removed

    def exchanged(self, removed: Parts) -> Parts | None:
        """With one part for another: nearer to the ceilings where it is too far below, else with less score lost."""
        miss, others = self._miss(removed), [part for part in range(len(self._scores)) if part not in removed]
        pairs = [(float(self._scores[new] - self._scores[old]), old, new) for old in removed for new in others]
        for more, old, new in sorted(pairs):
            if more >= 0 and not miss:
                return None
            choice = removed - {old} | {new}
            if self.fits(choice) and (self._miss(choice), more) < (miss, 0.0):
                return choice
        return None

    def _miss(self, removed: Parts) -> float:
        """By how much it is too far below the nearest ceiling, as a share of the whole."""
        left = self._costs(removed)
        return max(0.0, min(self._room(name, left[name]) for name in self._ceilings))

    def _room(self, name: str, left: int) -> float:
        finest = min((shares[name] for shares in self._shares if shares[name] > 0), default=0.0)
        return (self._ceilings[name] - left) / self._whole[name] - max(TOLERANCE, finest)


def _unreachable(found: Mapping[str, int], ceilings: Mapping[str, float]) -> TargetUnreachable:
    name = next(name for name, ceiling in ceilings.items() if found[name] > ceiling)
    detail = f"{name} cannot go down to {ceilings[name]}: with every branch gone that can go, {found[name]} remain"
    return TargetUnreachable(detail, asked=ceilings[name], best=found[name])
