import numpy as np
import pytest

from worker.compressor.evaluation.runtime import Runner


class Fixed(Runner):
    """Takes three rows, and gives one output with a row for each and one with two."""

    batch_size = 3

    def run(self, feeds):
        assert len(feeds[0]) == 3
        return feeds[0] * 2, np.repeat(feeds[0], 2, 0)


class TestRunRows:
    @pytest.mark.parametrize("count", [1, 3, 4, 8])
    def test_a_fixed_batch_takes_any_number_of_rows(self, count):
        rows = np.arange(count * 2.0).reshape(count, 2)
        once, twice = Fixed().run_rows((rows,))
        assert (once == rows * 2).all() and (twice == np.repeat(rows, 2, 0)).all()
