"""What may be kept of one group: the widths that rounding allows, and which units make them up."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from worker.compressor.graph.channels.partition import Bundle, Partition


@dataclass(frozen=True)
class Rounding:
    """Widths are multiples of `step`; below one step halves of it are allowed, down to `finest`."""

    step: int
    finest: int


def rounding(width: int, round_to: int | Literal["auto"], *, convolves: bool) -> Rounding:
    """What the widths of a layer are kept to: `auto` is multiples of 8 for layers 64 wide or more, of 4 from 16, else of 1.

    Convolutions 32 wide or more get multiples of 16, above 16: that many channels onnxruntime computes at once with AVX-512
    (8 with AVX2), and 24 take it as long as 32. Products of matrices hardly care.
    """
    if round_to != "auto":
        return Rounding(round_to, round_to)
    finest = 8 if width >= 64 else 4 if width >= 16 else 1
    return Rounding(16 if convolves and width >= 32 else finest, finest)


@dataclass(frozen=True)
class Choice:
    """One group that may be cut: `scores` `[num_units]`, and the `partition` that says what may go together.

    Units go in one order, so that each width keeps all that a narrower one does: next goes the bundle of the lowest mean
    score, the lowest units of each block. Bundles that narrow the layers alike go as many at once as it takes to leave
    multiples as `rounding` says. `is_comparable`: see `Criterion`; groups of one `kind` are built alike. `floor` units stay
    in any case, where somebody said so.
    """

    group: int
    scores: np.ndarray
    partition: Partition
    rounding: Rounding
    is_comparable: bool = False
    kind: Hashable = None
    floor: float | None = None

    @property
    def num_units(self) -> int:
        """Units of the whole group."""
        return len(self.scores)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of units that may be kept, rising; the last is all of them."""
        gone = np.cumsum([len(units) for units in self._removals])
        return (*(self.num_units - gone[::-1]).tolist(), self.num_units)

    @cached_property
    def relative(self) -> np.ndarray:
        """The scores, over their mean where that is what makes them compare between groups; falling, `[num_units]`."""
        mean = 1.0 if self.is_comparable else self.scores.mean()
        return np.sort(self.scores / mean if mean > 0 else np.ones(self.num_units))[::-1]

    def at_least(self, count: float) -> int:
        """The smallest allowed number that is not below `count`."""
        return next(allowed for allowed in self.counts if allowed >= count or allowed == self.num_units)

    def above(self, count: int) -> int | None:
        """The next allowed number above `count`."""
        return next((allowed for allowed in self.counts if allowed > count), None)

    def below(self, count: int) -> int | None:
        """The next allowed number below `count`."""
        return next((allowed for allowed in reversed(self.counts) if allowed < count), None)

    def lost(self, count: int) -> float:
        """The scores of the units that go, summed; `count` is one of `counts`."""
        return self._lost[count]

    @cached_property
    def _lost(self) -> dict[int, float]:
        sums = np.cumsum([0.0, *(self.scores[units].sum() for units in self._removals)])
        return dict(zip(reversed(self.counts), sums.tolist(), strict=True))

    def units(self, count: int) -> np.ndarray:
        """The units to keep, rising; `count` is one of `counts`."""
        kept = np.ones(self.num_units, bool)
        for units in self._removals[: len(self.counts) - 1 - self.counts.index(count)]:
            kept[units] = False
        return np.flatnonzero(kept)

    @cached_property
    def _removals(self) -> list[np.ndarray]:
        """The units that go in each removal, in order."""
        queues = _Queues(self.scores, self.partition)
        alike: dict[bytes, list[Bundle]] = {}
        for bundle in self.partition.bundles:
            alike.setdefault(self._narrowing(bundle).tobytes(), []).append(bundle)
        stocks = [_Stock(bundles, *self._at_once(bundles[0])) for bundles in alike.values()]
        found = []
        while offers := [(offer, stock) for stock in stocks if (offer := stock.offer(queues)) is not None]:
            (sizes, spare), stock = min(offers, key=lambda pair: queues.mean(pair[0][0]))
            stock.spare = spare
            found.append(queues.take(sizes))
        return found

    def _narrowing(self, bundle: Bundle) -> np.ndarray:
        """By how much each layer gets narrower, `[L]`."""
        return self.partition.widths @ bundle.sizes

    def _at_once(self, bundle: Bundle) -> tuple[int, int]:
        """The fewest such bundles that are a multiple of the step in every layer, and of the finest one."""
        narrowing = self._narrowing(bundle).tolist()
        step, finest = (step // math.gcd(step, *narrowing) for step in (self.rounding.step, self.rounding.finest))
        return step, finest


class _Queues:
    """The units of each block, those with the lowest scores first; of equal scores the lower number goes last."""

    def __init__(self, scores: np.ndarray, partition: Partition) -> None:
        self._order = np.lexsort((-np.arange(len(scores)), scores, partition.blocks))
        self._sums = np.concatenate([[0.0], np.cumsum(scores[self._order])])
        self._at = np.cumsum(partition.sizes) - partition.sizes

    def mean(self, sizes: np.ndarray, after: np.ndarray | int = 0) -> float:
        """The mean score of the next units, `sizes` of each block, when those of `after` have gone."""
        start = self._at + after
        return float((self._sums[start + sizes] - self._sums[start]).sum() / sizes.sum())

    def take(self, sizes: np.ndarray) -> np.ndarray:
        """The next units."""
        units = [self._order[start : start + size] for start, size in zip(self._at, sizes, strict=True) if size]
        self._at = self._at + sizes
        return np.concatenate(units)


class _Stock:
    """Bundles that narrow the layers alike; `spare` says how many of each may still go."""

    def __init__(self, bundles: list[Bundle], at_once: int, finest: int) -> None:
        self._bundles, self._at_once, self._finest = bundles, at_once, finest
        self._least = sum(bundle.least for bundle in bundles)
        self.spare = [bundle.times - bundle.least for bundle in bundles]

    def offer(self, queues: _Queues) -> tuple[np.ndarray, list[int]] | None:
        """The fewest that leave a multiple, by the lowest scores, and what is spare then; None where more have to stay."""
        spare, sizes = list(self.spare), np.zeros_like(self._bundles[0].sizes)
        left, at_once = sum(spare) + self._least, self._at_once
        while left <= at_once > self._finest:
            at_once //= 2
        number = (left - 1) % at_once + 1
        if number > sum(spare):
            return None
        for _ in range(number):
            possible = [index for index, left in enumerate(spare) if left]
            best = min(possible, key=lambda index: queues.mean(self._bundles[index].sizes, sizes))
            spare[best] -= 1
            sizes = sizes + self._bundles[best].sizes
        return sizes, spare
