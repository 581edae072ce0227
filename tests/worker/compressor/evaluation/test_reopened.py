import numpy as np
import pytest

from worker.compressor.evaluation.reopened import relative_error


class TestRelativeError:
    def test_is_relative_to_the_largest_magnitude(self):
        assert relative_error(np.array([2.0, -4.0]), np.array([2.0, -3.0])) == 0.25

    def test_differences_below_the_resolution_say_nothing(self):
        wanted, found = np.array([1e-6, 0.0]), np.array([1e-6, 2e-7])
        assert relative_error(wanted, found) == pytest.approx(0.2)
        assert relative_error(wanted, found, 4e-7) == 0.0

    def test_a_difference_beyond_the_resolution_counts(self):
        assert relative_error(np.array([1.0]), np.array([0.5]), 4e-7) == pytest.approx(0.5, abs=1e-6)

    @pytest.mark.parametrize("found", [np.array([np.nan]), np.array([1.0, 2.0])])
    def test_other_shapes_or_finiteness_are_infinitely_wrong(self, found):
        assert relative_error(np.array([1.0]), found) == np.inf
