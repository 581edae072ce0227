"""The law of a layer and the line through whole networks; the table against networks that are really run."""

import numpy as np
import pytest

from worker.compressor.pruning.latency import Line, fit


def features(num_points, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [np.ones(num_points), rng.integers(1e3, 1e5, num_points), rng.integers(1e5, 1e8, num_points)]
    )


class TestFit:
    @pytest.mark.parametrize("weights", [(1e-5, 2e-10, 3e-11), (0, 0, 3e-11), (1e-5, 0, 0), (0, 2e-10, 3e-11)])
    def test_a_law_is_found_again(self, weights):
        points = features(9)
        law = fit(points, points @ np.array(weights))
        fresh = features(5, seed=1)
        np.testing.assert_allclose([law(point) for point in fresh], fresh @ np.array(weights), rtol=1e-6)

    @pytest.mark.parametrize("seed", range(5))
    def test_more_never_takes_less(self, seed):
        points, rng = features(9, seed), np.random.default_rng(seed)
        law = fit(points, rng.random(9) * 1e-3)
        assert (law.weights >= 0).all() and law.weights.any()

    @pytest.mark.parametrize("seed", range(5))
    def test_no_other_law_is_nearer(self, seed):
        points, rng = features(9, seed), np.random.default_rng(seed)
        seconds = points @ np.array([1e-5, 2e-10, 3e-11]) * rng.uniform(0.7, 1.3, 9)

        def miss(weights):
            return np.square(points @ weights / seconds - 1).sum()

        law = fit(points, seconds)
        for _ in range(2000):
            other = np.maximum(law.weights + rng.normal(0, 0.1, 3) * [1e-5, 2e-10, 3e-11], 0)
            assert miss(law.weights) <= miss(other) + 1e-9

    def test_one_point_is_enough(self):
        point = np.array([[1.0, 1e4, 1e7]])
        assert fit(point, np.array([2e-3]))(point[0]) == pytest.approx(2e-3)


class TestLine:
    @pytest.mark.parametrize("true", [lambda s: 0.2 + 0.9 * s, lambda s: 1.4 * s**1.3, lambda s: 2 * s**0.6])
    @pytest.mark.parametrize("wanted", [0.25, 0.5, 0.8])
    def test_choosing_by_it_and_measuring_ends_at_the_wanted_time(self, true, wanted):
        line, total = Line([(1.0, true(1.0))]), 1.0
        for _ in range(5):
            totals = np.linspace(0.001, 1.0, 1000)
            total = max((t for t in totals if line(t, wanted) <= wanted), default=totals[0])
            line.points.append((total, true(total)))
        if true(0.001) <= wanted:
            assert true(total) == pytest.approx(wanted, rel=0.02)

    def test_it_rises_whatever_was_measured(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            line = Line([(float(s), float(t)) for s, t in rng.uniform(0.1, 1, (4, 2))])
            predicted = [line(total, 0.5) for total in np.linspace(0.1, 1, 10)]
            assert (np.diff(predicted) > 0).all()
