"""Of single weights, or of tiles of them, those with the lowest scores that give as many zeros as are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The share of a matrix that stays in any case while the target can be met so: a layer of zeros passes nothing on.
FLOOR = 0.02


@dataclass(frozen=True)
class Candidates:
    """What may become 0 in one matrix of `size` numbers: `scores`, and `gains`, the numbers in each that are not 0 yet."""

    scores: np.ndarray
    gains: np.ndarray
    size: int

    @property
    def num_zeros(self) -> int:
        """Numbers that are 0 already."""
        return self.size - int(self.gains.sum())


def lowest_of_all(matrices: Sequence[Candidates], wanted: int) -> list[np.ndarray]:
    """True for what stays, by one ranking over all matrices: `wanted` zeros, those that are there included."""
    scores = np.concatenate([matrix.scores.reshape(-1) for matrix in matrices])
    gains = np.concatenate([matrix.gains.reshape(-1) for matrix in matrices])
    more = wanted - sum(matrix.num_zeros for matrix in matrices)
    protected = np.concatenate([_protected(matrix) for matrix in matrices])
    if more <= int(gains[~protected].sum()):
        scores = np.where(protected, np.inf, scores)
    ends = np.cumsum([matrix.scores.size for matrix in matrices])[:-1]
    flags = np.split(_lowest(scores, gains, more), ends)
    return [part.reshape(matrix.scores.shape) for part, matrix in zip(flags, matrices, strict=True)]


def lowest_of_each(matrices: Sequence[Candidates], wanted: int) -> list[np.ndarray]:
    """True for what stays, where each matrix gets the same share of zeros: `wanted` together, those that are there included."""
    total, left, kept = sum(matrix.size for matrix in matrices), wanted, []
    for matrix in matrices:
        share = -(-left * matrix.size // total)  # rounded up: the last matrix makes up for it
        flags = _lowest(matrix.scores.reshape(-1), matrix.gains.reshape(-1), share - matrix.num_zeros)
        kept.append(flags.reshape(matrix.scores.shape))
        gone = matrix.num_zeros + int(matrix.gains[~kept[-1]].sum())
        total, left = total - matrix.size, max(0, left - gone)
    return kept


def _protected(matrix: Candidates) -> np.ndarray:
    number = max(1, int(FLOOR * matrix.scores.size))
    found = np.zeros(matrix.scores.size, bool)
    found[np.argsort(matrix.scores, axis=None, kind="stable")[-number:]] = True
    return found


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
