"""Of single weights, or of tiles of them, those with the lowest scores that give as many zeros as are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The share of a matrix that stays in any case while the target can be met so: a layer of zeros passes nothing on.
FLOOR = 0.02


@dataclass(frozen=True)
class Candidates:
    """What may become 0 in one matrix of `size` numbers: `scores`, and `gains`, the numbers in each that are not 0 yet.

    Of the candidates this share stays whatever is asked for, those of the highest scores: `floor`, where there is one.
    """

    scores: np.ndarray
    gains: np.ndarray
    size: int
    floor: float | None = None

    @property
    def num_zeros(self) -> int:
        """Numbers that are 0 already."""
        return self.size - int(self.gains.sum())

    @cached_property
    def num_candidates(self) -> int:
        """Numbers that are 0 already or may become so."""
        return self.size - int(self.gains.reshape(-1)[self.protected].sum() if self.floor else 0)

    @cached_property
    def protected(self) -> np.ndarray:
        """What the floor, or in its place `FLOOR`, keeps: flat flags."""
        share = FLOOR if self.floor is None else self.floor
        found = np.zeros(self.scores.size, bool)
        number = max(1, math.ceil(share * self.scores.size - 1e-9)) if share else 0
        found[np.argsort(self.scores, axis=None, kind="stable")[self.scores.size - number :]] = True
        return found

    @property
    def ranked(self) -> np.ndarray:
        """The scores, flat, what a floor keeps above all others."""
        flat = self.scores.reshape(-1)
        return np.where(self.protected, np.inf, flat) if self.floor else flat


def lowest_of_all(matrices: Sequence[Candidates], wanted: int) -> list[np.ndarray]:
    """True for what stays, by one ranking over all matrices: `wanted` zeros, those that are there included.

    A floor holds up to as many zeros as there are candidates, all matrices together.
    """
    scores = np.concatenate([matrix.scores.reshape(-1) for matrix in matrices])
    gains = np.concatenate([matrix.gains.reshape(-1) for matrix in matrices])
    more = wanted - sum(matrix.num_zeros for matrix in matrices)
    protected = np.concatenate([matrix.protected for matrix in matrices])
    if more <= int(gains[~protected].sum()):
        scores = np.where(protected, np.inf, scores)
    ends = np.cumsum([matrix.scores.size for matrix in matrices])[:-1]
    flags = np.split(_lowest(scores, gains, more), ends)
    return [part.reshape(matrix.scores.shape) for part, matrix in zip(flags, matrices, strict=True)]


def lowest_of_each(matrices: Sequence[Candidates], wanted: int) -> list[np.ndarray]:
    """True for what stays, where each matrix gets the same share of zeros: `wanted` together, those that are there included."""
    total, left, kept = sum(matrix.size for matrix in matrices), wanted, dict[int, np.ndarray]()
    # Those of which floors keep most come first, so that what they cannot give is left for others.
    for at in sorted(range(len(matrices)), key=lambda at: matrices[at].num_candidates / matrices[at].size):
        matrix = matrices[at]
        share = -(-left * matrix.size // total)  # rounded up: the last matrix makes up for it
        more = min(share, matrix.num_candidates) - matrix.num_zeros
        kept[at] = _lowest(matrix.ranked, matrix.gains.reshape(-1), more).reshape(matrix.scores.shape)
        gone = matrix.num_zeros + int(matrix.gains[~kept[at]].sum())
        total, left = total - matrix.size, max(0, left - gone)
    return [kept[at] for at in range(len(matrices))]


def _lowest(scores: np.ndarray, gains: np.ndarray, more: int) -> np.ndarray:
    """False for the lowest, so that there are at least so many more zeros, and no single one could stay."""
    kept = np.ones(len(scores), bool)
    if more <= 0:
        return kept
    order = np.argsort(scores, kind="stable")
    sums = np.cumsum(gains[order], dtype=np.int64)
    number = int(np.searchsorted(sums, more)) + 1
    kept[order[:number]] = False
    spare = int(sums[number - 1]) - more
    while spare > 0 and len(fits := np.flatnonzero(~kept & (gains > 0) & (gains <= spare))):
        best = fits[np.argmax(scores[fits])]
        kept[best] = True
        spare -= int(gains[best])
    return kept
