"""Rows in pieces."""

import numpy as np
import pytest

from worker.compressor.evaluation.runtime import Runner

ROWS = np.arange(20.0).reshape(10, 2)


class Counting(Runner):
    """Twice its input, and how many rows came each time."""

    def __init__(self, batch_size=None, most_rows=None):
        self.batch_size, self.most_rows, self.sizes = batch_size, most_rows, []

    def run(self, feeds):
        self.sizes.append(len(feeds[0]))
        return (2 * feeds[0],)


class TestRunRows:
    @pytest.mark.parametrize(
        ("runner", "sizes"),
        [
            (Counting(), [10]),
            (Counting(most_rows=10), [10]),
            (Counting(most_rows=64), [10]),
            (Counting(most_rows=4), [4, 4, 2]),
            (Counting(batch_size=4), [4, 4, 4]),
            (Counting(batch_size=4, most_rows=3), [4, 4, 4]),
            (Counting(batch_size=16), [16]),
        ],
    )
    def test_all_rows_are_answered_in_pieces_that_the_network_takes(self, runner, sizes):
        (found,) = runner.run_rows((ROWS,))
        assert np.array_equal(found, 2 * ROWS) and runner.sizes == sizes
