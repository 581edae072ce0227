"""Learning rates over one training step, as a function of the step number alone: nothing to keep in a checkpoint."""

from __future__ import annotations

import math
from typing import Literal

WARMUP_SHARE, MAX_WARMUP = 0.05, 100
FINAL_SHARE = 0.01


def learning_rate(step: int, num_steps: int, peak: float, schedule: Literal["cosine", "constant"]) -> float:
    """The rate of `step` (from 0): a linear warm-up, then constant, or a half cosine down to a hundredth of the peak.

    The warm-up lets Adam's second moments settle before they divide anything: without it the first steps undo a refit.
    """
    warmup = min(MAX_WARMUP, max(1, round(WARMUP_SHARE * num_steps)))
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))
