"""Widths that are tried: what predicted losses get wrong is found, within the number of trials."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worker.compressor.pruning.test_descent import problem, total
from worker.compressor.pruning.allocation import allocate
from worker.compressor.pruning.trials import MARGIN, Trials


class Told:
    """True losses, beside what was predicted; remembers what was tried."""

    def __init__(self, losses, seed):
        self._losses, self.tried = losses, []
        self._factors = dict(enumerate(10 ** np.random.default_rng(seed).uniform(-1, 1, len(losses))))

    def __call__(self, widths):
        self.tried.append(dict(widths))
        return self.true(widths)

    def true(self, widths):
        return total(
            {group: lambda kept, g=group: self._factors[g] * self._losses[g](kept) for group in widths}, widths
        )


def both(seed, number, step=1):
    """Widths without and with trials, the ceiling, and what was tried."""
    model, options, losses = problem(seed, step)
    ceiling, told = {"macs": int(0.34 * model({})["macs"])}, Told(losses, seed)
    before = allocate(options, model, ceiling, "global", losses)
    after = allocate(options, model, ceiling, "global", losses, Trials([told], number))
    assert model(after)["macs"] <= ceiling["macs"]
    floors = {o.group: o.at_least(0.2 * o.num_units) for o in options}
    assert all(widths[group] >= floors[group] for widths in told.tried for group in floors)
    assert all(model(widths)["macs"] <= ceiling["macs"] for widths in told.tried)
    return before, after, told


@pytest.mark.parametrize("step", [1, 2])
def test_what_was_predicted_wrongly_is_mended(step):
    gains = []
    for seed in range(10):
        before, after, told = both(seed, 30, step)
        assert before in told.tried
        assert len(told.tried) <= 30 and len({tuple(sorted(w.items())) for w in told.tried}) == len(told.tried)
        gains.append(told.true(after) / told.true(before))
    assert max(gains) == 1 and np.median(gains) < 0.9


def test_the_best_of_what_was_tried_stays():
    _, after, told = both(1, 12)
    assert told.true(after) <= min(map(told.true, told.tried)) / (1 - MARGIN)


def test_what_is_hardly_better_is_not_worth_an_exchange():
    model, options, losses = problem(2)
    ceiling = {"macs": int(0.34 * model({})["macs"])}
    fading = iter(1 - MARGIN / 2 * np.arange(100) / 100)
    found = allocate(options, model, ceiling, "global", losses, Trials([lambda widths: next(fading)], 20))
    assert found == allocate(options, model, ceiling, "global", losses)


def test_what_is_better_by_one_fold_alone_goes_no_further():
    model, options, losses = problem(5)
    ceiling, told = {"macs": int(0.34 * model({})["macs"])}, Told(losses, 5)
    before = allocate(options, model, ceiling, "global", losses)

    def opposed(widths):
        return 3 * told.true(before) - told.true(widths)

    assert allocate(options, model, ceiling, "global", losses, Trials([told], 20)) != before
    assert allocate(options, model, ceiling, "global", losses, Trials([told, opposed], 20)) == before


def test_shallow_cuts_are_not_tried():
    model, options, losses = problem(0)
    told = Told(losses, 0)
    allocate(options, model, {"macs": int(0.5 * model({})["macs"])}, "global", losses, Trials([told], 20))
    assert not told.tried


def test_no_more_than_asked_is_measured():
    before, after, told = both(4, 2)
    assert len(told.tried) == 2 and told.true(after) <= told.true(before)
