"""Which whole parts go: against every possible choice."""

import itertools

import numpy as np
import pytest

from worker.compressor.errors import TargetUnreachable
from worker.compressor.pruning.dropping import TOLERANCE, drop


def parts(seed, count=9, even=False):
    """Scores, and costs of parts that do not depend on each other, of a network of 1000 and 500."""
    rng = np.random.default_rng(seed)
    macs, params = rng.integers(20, 140, count), rng.integers(5, 50, count)
    if even:
        macs[:] = 80

    def costs(removed):
        return {"macs": 1000 - int(macs[list(removed)].sum()), "params": 500 - int(params[list(removed)].sum())}

    return rng.random(count), costs


def room(costs, removed, ceilings):
    whole, left = costs(()), costs(removed)
    return min((most - left[name]) / whole[name] for name, most in ceilings.items())


class TestDrop:
    @pytest.mark.parametrize("ceilings", [{"macs": 700}, {"params": 400}, {"macs": 800, "params": 380}])
    def test_nothing_goes_that_could_stay(self, ceilings):
        for seed in range(20):
            scores, costs = parts(seed)
            removed = drop(scores, costs, ceilings)
            assert room(costs, removed, ceilings) >= 0
            assert all(room(costs, [part for part in removed if part != each], ceilings) < 0 for each in removed)

    @pytest.mark.parametrize("even", [False, True])
    def test_little_more_score_is_lost_than_has_to_be(self, even):
        lost, least = [], []
        for seed in range(30):
            scores, costs = parts(seed, even=even)
            ceilings = {"macs": 650}
            every = [c for n in range(10) for c in itertools.combinations(range(9), n)]
            finest = min(1000 - costs((part,))["macs"] for part in range(9)) / 1000
            near = [c for c in every if 0 <= room(costs, c, ceilings) <= max(TOLERANCE, finest)]
            removed = drop(scores, costs, ceilings)
            assert room(costs, removed, ceilings) <= max(TOLERANCE, finest)
            lost.append(scores[removed].sum())
            least.append(min(scores[list(choice)].sum() for choice in near))
        assert sum(lost) <= (1.000001 if even else 1.1) * sum(least)

    def test_a_part_within_a_part_that_goes_is_none_of_its_own(self):
        def costs(removed):
            return {"macs": 100 - (60 if 0 in removed else 20 if 1 in removed else 0) - (10 if 2 in removed else 0)}

        assert drop(np.array([0.5, 0.1, 0.2]), costs, {"macs": 40}) == [0]

    def test_what_is_met_already_costs_nothing(self):
        scores, costs = parts(0)
        assert drop(scores, costs, {"macs": 1000}) == []

    def test_less_than_is_left_without_all_is_unreachable(self):
        scores, costs = parts(0)
        with pytest.raises(TargetUnreachable) as caught:
            drop(scores, costs, {"macs": 10})
        assert caught.value.best == costs(range(9))["macs"]
        with pytest.raises(TargetUnreachable):
            drop(np.empty(0), costs, {"macs": 10})
