"""What may be kept of one group: the widths that rounding allows, and which units make them up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np


def rounding_step(width: int, round_to: int | Literal["auto"]) -> int:
    """Widths are kept to multiples of this: `auto` is 8 for layers 64 wide or more, 4 from 16, else 1.

    Runtimes are slower on odd widths than on the next multiple (onnxruntime: 127 of 128 channels took 1.2 times the time of all).
    """
    if round_to != "auto":
        return round_to
    return 8 if width >= 64 else 4 if width >= 16 else 1


@dataclass(frozen=True)
class Choice:
    """One group that may be cut: `scores` `[num_units]`, and `blocks` (unit → block) where each block keeps equally many."""

    group: int
    scores: np.ndarray
    blocks: np.ndarray | None
    step: int

    @property
    def num_units(self) -> int:
        """Units of the whole group."""
        return len(self.scores)

    @cached_property
    def num_blocks(self) -> int:
        """How many blocks there are; 1 where any units may be kept."""
        return 1 if self.blocks is None else int(self.blocks.max()) + 1

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The numbers of units that may be kept, rising: multiples of the step (and of the blocks), and all of them."""
        step = math.lcm(self.step, self.num_blocks)
        return (*range(step, self.num_units, step), self.num_units)

    @cached_property
    def relative(self) -> np.ndarray:
        """The scores over their mean, so that groups of unlike layers compare; falling, `[num_units]`."""
        mean = self.scores.mean()
        return np.sort(self.scores / mean if mean > 0 else np.ones(self.num_units))[::-1]

    def at_least(self, count: float) -> int:
        """The smallest allowed number that is not below `count`."""
        return next(allowed for allowed in self.counts if allowed >= count or allowed == self.num_units)

    def above(self, count: int) -> int | None:
        """The next allowed number above `count`."""
        return next((allowed for allowed in self.counts if allowed > count), None)

    def units(self, count: int) -> np.ndarray:
        """The units to keep, rising: the best of each block; ties go to the lower number."""
        blocks = np.zeros(self.num_units, int) if self.blocks is None else self.blocks
        share = count // self.num_blocks
        kept = []
        for block in range(self.num_blocks):
            members = np.flatnonzero(blocks == block)
            best = np.argsort(-self.scores[members], kind="stable")[:share]
            kept.append(members[best])
        return np.sort(np.concatenate(kept))
