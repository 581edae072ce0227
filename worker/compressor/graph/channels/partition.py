"""How many units of a group may go: its blocks of interchangeable units, and the bundles in which they go.

Grouped convolutions and reshapes to [G, C/G] ask that every one of their rows loses the same number. All these quotas
together are a homogeneous linear system over the numbers that the blocks lose, and a bundle is a small solution of it in
whole numbers. Small solutions are found by a walk that takes the unit which evens the rows out most (the descent of
Contejean and Devie, Information and Computation 113, 1994, one path of it): as long as what is left is a solution, there
always is one, so that the bundles exhaust the group.

Letters: R rows that must stay even, L layers, B blocks, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Bundle:
    """Units that go together: `sizes[b]` of block b, any members. There are `times` of them, and `least` have to stay."""

    sizes: np.ndarray
    times: int
    least: int = 0


@dataclass(frozen=True)
class Partition:
    """The units of a group: `blocks` maps each to its block, and what goes is a whole number of every bundle.

    `uneven` `[R, B]` times the numbers of units that go (or stay) must be 0. `widths` `[L, B]` says how many channels of
    each layer a unit of the block is.
    """

    blocks: np.ndarray
    uneven: np.ndarray
    widths: np.ndarray
    bundles: tuple[Bundle, ...]

    @property
    def sizes(self) -> np.ndarray:
        """Units per block, `[B]`."""
        return np.bincount(self.blocks)

    @property
    def removable(self) -> np.ndarray:
        """Units per block that can go, `[B]`."""
        parts = [(bundle.times - bundle.least) * bundle.sizes for bundle in self.bundles]
        return np.sum([np.zeros_like(self.sizes), *parts], axis=0)

    @property
    def can_go(self) -> np.ndarray:
        """For each unit whether it can go, `[U]`."""
        return (self.removable > 0)[self.blocks]

    def is_even(self, units: np.ndarray) -> bool:
        """Whether these units leave all rows with equal numbers."""
        counts = np.bincount(self.blocks[units], minlength=len(self.sizes))
        return not (self.uneven @ counts).any()

    def keeping(self, needs: Sequence[np.ndarray]) -> Partition:
        """The same, where of each set of blocks (`[B]` flags) at least one unit stays."""
        least, unmet = [0] * len(self.bundles), list(needs)
        while unmet:
            meets = [[bool(bundle.sizes[need].any()) for need in unmet] for bundle in self.bundles]
            best = max(range(len(meets)), key=lambda index: (sum(meets[index]), -self.bundles[index].sizes.sum()))
            least[best] = 1
            unmet = [need for need, met in zip(unmet, meets[best], strict=True) if not met]
        kept = tuple(replace(bundle, least=number) for bundle, number in zip(self.bundles, least, strict=True))
        return replace(self, bundles=kept)

    def draw(self, share: float, rng: np.random.Generator) -> np.ndarray:
        """Random units to keep, rising: about this share of the bundles."""
        spare = np.repeat(np.arange(len(self.bundles)), [bundle.times - bundle.least for bundle in self.bundles])
        num_gone = round((1 - share) * sum(bundle.times for bundle in self.bundles))
        gone = [self.bundles[index].sizes for index in rng.permutation(spare)[:num_gone]]
        left = self.sizes - np.sum([np.zeros_like(self.sizes), *gone], axis=0)
        members = [rng.permutation(np.flatnonzero(self.blocks == block))[:n] for block, n in enumerate(left)]
        return np.sort(np.concatenate(members))


def partition(uneven: np.ndarray, widths: np.ndarray) -> Partition:
    """The partition of units with these columns, `[R, U]` and `[L, U]`: alike ones are a block. Nothing has to stay."""
    columns, blocks = np.unique(np.concatenate([uneven, widths]), axis=1, return_inverse=True)
    blocks = blocks.reshape(-1)
    rows = columns[: len(uneven)]
    return Partition(blocks, rows, columns[len(uneven) :], tuple(_bundles(rows, np.bincount(blocks))))


def _bundles(uneven: np.ndarray, sizes: np.ndarray) -> list[Bundle]:
    left, found, is_dead = sizes.copy(), [], np.zeros(len(sizes), bool)
    while (left[~is_dead] > 0).any():
        start = int(np.where(is_dead, 0, left / sizes).argmax())
        bundle = _bundle(uneven, left, start)
        if bundle is None:
            is_dead[start] = True
            continue
        inside = bundle > 0
        times = int((left[inside] // bundle[inside]).min())
        left = left - times * bundle
        found.append(Bundle(bundle, times))
    return found


def _bundle(uneven: np.ndarray, left: np.ndarray, start: int) -> np.ndarray | None:
    """A small even set of units: the first one around `start`, or a smaller one inside it."""
    bundle = _walk(uneven, left, start)
    while bundle is not None:
        blocks = np.flatnonzero(bundle)
        if np.linalg.matrix_rank(uneven[:, blocks]) == len(blocks) - 1:  # all that is even inside is a multiple of one
            return bundle // np.gcd.reduce(bundle)
        inside = (_walk(uneven, bundle, block) for block in blocks.tolist())
        smaller = next((other for other in inside if other is not None and other.sum() < bundle.sum()), None)
        if smaller is None:
            break
        bundle = smaller
    return bundle


def _walk(uneven: np.ndarray, room: np.ndarray, start: int) -> np.ndarray | None:
    """Numbers per block that leave all rows even, at most `room`; None where the walk from `start` ends without."""
    taken, length = np.zeros_like(room), (uneven**2).sum(axis=0)
    block = start
    while True:
        taken[block] += 1
        defect = uneven @ taken
        if not defect.any():
            return taken
        pull = defect @ uneven
        possible = (taken < room) & (pull < 0)
        if not possible.any():
            return None
        nearest = np.where(possible, 2 * pull + length, np.iinfo(np.int64).max)
        # among equals the block of which most is left, so that all are used up together
        block = int(np.where(nearest == nearest.min(), 1 - taken / np.maximum(room, 1), -1.0).argmax())
