"""Rows mixed in pairs: more inputs than there are, near those that there are.

`(1 - a) x + a x'`, `a` uniform in [0, `MIXED`] (mixup: Zhang et al. 2017, arXiv 1710.09412, whose labels are mixed likewise;
here the original says what a mixture is). It takes no knowledge of what an input shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

#: The largest share of the second row of a pair.
MIXED = 0.5
#: What looks at samples, and has fewer than these, takes mixtures of them as well.
ENOUGH_ROWS = 512


def shares(count: int, rng: np.random.Generator) -> np.ndarray:
    """The shares of the second rows of so many pairs, `[count]`."""
    return rng.uniform(0, MIXED, count).astype(np.float32)


def mixed(first: np.ndarray, second: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Pairs of rows `[N, …]` mixed; whole numbers (tokens) cannot be, and are those of the first."""
    if first.dtype.kind != "f":
        return first
    share = shares.reshape(-1, *[1] * (first.ndim - 1)).astype(first.dtype)
    found: np.ndarray = (1 - share) * first + share * second
    return found


def filled_up(feeds: Mapping[str, np.ndarray], count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows, and behind them as many mixtures of them as it takes for `count` rows; none where an input cannot be mixed."""
    num_rows = len(next(iter(feeds.values())))
    more = count - num_rows
    if more <= 0 or num_rows < 2 or any(feed.dtype.kind != "f" for feed in feeds.values()):
        return dict(feeds)
    first = np.arange(more) % num_rows
    second = np.concatenate([rng.permutation(num_rows) for _ in range(-(-more // num_rows))])[:more]
    parts = shares(more, rng)
    return {name: np.concatenate([feed, mixed(feed[first], feed[second], parts)]) for name, feed in feeds.items()}
