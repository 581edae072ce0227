"""More rows than there are."""

from __future__ import annotations

import numpy as np

from worker.compressor.data.mixing import MIXED, filled_up


def test_mixtures_lie_between_rows_and_nearer_to_the_first():
    x = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    found = filled_up({"x": x, "z": 2 * x}, 12, np.random.default_rng(1))
    assert found["x"].shape == (12, 3, 2) and found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"][:5], x)
    np.testing.assert_allclose(found["z"], 2 * found["x"], rtol=1e-5)  # one pair for all inputs of a row
    shares = []
    for number, row in enumerate(found["x"][5:]):
        first = x[number % 5]
        second = min(x, key=lambda other: _distance(row, first, other))
        assert _distance(row, first, second) < 1e-5
        if not np.array_equal(second, first):
            shares.append(np.abs(row - first).sum() / np.abs(second - first).sum())
    assert len(shares) >= 4 and 0 < max(shares) <= MIXED


def _distance(row, first, second):
    """From a row to the line between two others."""
    if np.array_equal(first, second):
        return float(np.abs(row - first).max())
    along = second - first
    share = ((row - first) * along).sum() / (along * along).sum()
    return float(np.abs(row - first - share * along).max())


def test_whole_numbers_and_single_rows_are_left_alone():
    tokens, x = np.arange(8).reshape(4, 2), np.ones((4, 3), np.float32)
    rng = np.random.default_rng(0)
    assert len(filled_up({"tokens": tokens, "x": x}, 9, rng)["x"]) == 4
    assert len(filled_up({"x": x[:1]}, 9, rng)["x"]) == 1 and len(filled_up({"x": x}, 3, rng)["x"]) == 4
