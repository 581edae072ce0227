"""Allocation against brute force on cost models small enough to try every width."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from worker.compressor.errors import TargetUnreachable
from worker.compressor.graph.channels.partition import partition
from worker.compressor.pruning.allocation import allocate
from worker.compressor.pruning.choices import Choice, Rounding, rounding


class Chain:
    """A chain of dense layers: group i couples the outputs of layer i with the inputs of layer i + 1."""

    def __init__(self, widths, ends=(3, 10)):
        self.widths, self.ends = widths, ends

    def __call__(self, kept):
        sizes = [self.ends[0], *(kept.get(i, w) for i, w in enumerate(self.widths)), self.ends[1]]
        return {
            "macs": sum(a * b for a, b in itertools.pairwise(sizes)),
            "params": sum(a * b + b for a, b in itertools.pairwise(sizes)),
        }


def choice(scores, step=1, rows=None, group=0):
    """One layer's units, of which one has to stay; `rows` says in which row each lies, all of which must lose the same."""
    num = len(scores)
    member = np.zeros((1, num), int) if rows is None else (np.unique(rows)[:, None] == rows).astype(int)
    parts = partition(len(member) * member - member.sum(axis=0), np.ones((1, num), int))
    return Choice(
        group, np.asarray(scores, float), parts.keeping([np.ones(len(parts.sizes), bool)]), Rounding(step, step)
    )


def choices(widths, step=1, seed=0):
    rng = np.random.default_rng(seed)
    return [choice(rng.random(w) * (i + 1), step, group=i) for i, w in enumerate(widths)]


class TestAllocate:
    @pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
    @pytest.mark.parametrize("step", [1, 2, 4])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.77, 0.95])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_ceiling_holds_and_no_step_more_would(self, scope, step, share, seed):
        rng = np.random.default_rng(seed)
        widths = rng.integers(3, 12, 4).tolist()
        model, options = Chain(widths), choices(widths, step, seed)
        ceiling = int(share * model({})["macs"])
        every = [model(dict(enumerate(kept)))["macs"] for kept in itertools.product(*(c.counts for c in options))]
        if min(every) > ceiling:
            with pytest.raises(TargetUnreachable) as caught:
                allocate(options, model, {"macs": ceiling}, scope)
            assert caught.value.best == min(every) and caught.value.asked == ceiling
            return
        kept = allocate(options, model, {"macs": ceiling}, scope)
        assert model(kept)["macs"] <= ceiling
        for option in options:
            assert kept[option.group] in option.counts
            wider = option.above(kept[option.group])
            assert wider is None or model(kept | {option.group: wider})["macs"] > ceiling

    def test_all_ceilings_are_met(self):
        model, options = Chain([8, 8, 8]), choices([8, 8, 8])
        ceilings = {"macs": int(0.7 * model({})["macs"]), "params": int(0.4 * model({})["params"])}
        found = model(allocate(options, model, ceilings, "global"))
        assert all(found[name] <= ceiling for name, ceiling in ceilings.items())

    def test_a_global_cut_takes_the_lowest_relative_scores(self):
        options = [choice([9, 9, 9, 9]), choice([1, 0.1, 0.1, 1], group=1)]
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 6}, "global")
        assert kept == {0: 4, 1: 2} and options[1].units(2).tolist() == [0, 3]

    def test_where_scores_add_up_the_cheapest_units_by_what_they_save_go(self):
        options = [choice([1, 1, 1, 1]), choice([2, 2, 2, 2], group=1)]
        price = lambda kept: {"macs": kept[0] + 4 * kept[1]}  # noqa: E731
        losses = {option.group: option.lost for option in options}
        assert allocate(options, price, {"macs": 12}, "global", losses) == {0: 4, 1: 2}

    @pytest.mark.parametrize("step", [1, 2, 4])
    def test_what_is_lost_is_the_sum_of_what_went(self, step):
        option = choice(np.random.default_rng(0).random(11), step)
        for count in option.counts:
            assert option.lost(count) == pytest.approx(option.scores.sum() - option.scores[option.units(count)].sum())

    def test_a_layerwise_cut_takes_the_same_share(self):
        widths = [10, 20, 40]
        kept = allocate(choices(widths), lambda kept: {"params": sum(kept.values())}, {"params": 35}, "layer")
        assert kept == {0: 5, 1: 10, 2: 20}

    def test_comparable_scores_are_taken_as_they_are(self):
        options = [choice([9, 8, 7, 6]), choice([5, 4, 3, 1], group=1)]
        options = [replace(option, is_comparable=True) for option in options]
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 5}, "global")
        assert kept == {0: 4, 1: 1}

    def test_an_isomorphic_cut_takes_the_same_share_of_each_kind_and_the_best_within(self):
        options = [
            replace(choice(scores, group=group), kind=kind, is_comparable=True)
            for group, (kind, scores) in enumerate(
                [("a", [9, 8, 7, 6]), ("a", [1, 2, 3, 4]), ("b", [0.4, 0.1, 0.2, 0.3])]
            )
        ]
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 7}, "isomorphic")
        assert kept == {0: 4, 1: 1, 2: 2}

    def test_no_layer_is_wiped_out_while_the_target_can_be_met_without(self):
        options = [choice(np.ones(20)), choice(np.append(np.full(19, 1e-6), 1.0), group=1)]
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 12}, "global")
        assert kept[1] >= 4

    @pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
    def test_a_floor_holds_whatever_the_target(self, scope):
        options = [choice(np.ones(20)), choice(np.append(np.full(19, 1e-6), 1.0), group=1)]
        options = [replace(option, floor=0.3 * 20 - 1e-9) for option in options]
        sizes = lambda kept: {"params": sum(kept.values())}  # noqa: E731
        assert min(allocate(options, sizes, {"params": 14}, scope).values()) >= 6
        assert allocate(options, sizes, {"params": 12}, scope) == {0: 6, 1: 6}
        with pytest.raises(TargetUnreachable) as caught:
            allocate(options, sizes, {"params": 11}, scope)
        assert (caught.value.asked, caught.value.best) == (11, 12)

    def test_a_floor_of_nothing_lets_a_layer_go_to_its_last_unit(self):
        options = [choice(np.ones(20)), choice(np.append(np.full(19, 1e-6), 1.0), group=1)]
        options = [replace(option, floor=0.0) for option in options]
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 21}, "global")
        assert kept == {0: 20, 1: 1}

    def test_it_is_the_same_every_time(self):
        model = Chain([7, 9, 11])
        assert (
            len({tuple(allocate(choices([7, 9, 11]), model, {"macs": 150}, "global").items()) for _ in range(3)}) == 1
        )


class TestChoice:
    def test_counts_are_multiples_and_the_whole(self):
        assert choice(np.ones(10), 4).counts == (4, 8, 10)
        assert choice(np.ones(6), 8).counts == (6,)

    def test_every_row_keeps_equally_many_of_its_best(self):
        found = choice([1, 9, 3, 8, 2, 7], rows=np.array([0, 1, 0, 1, 0, 1]))
        assert found.counts == (2, 4, 6)
        assert found.units(2).tolist() == [1, 2] and found.units(4).tolist() == [1, 2, 3, 4]

    def test_widths_stay_multiples_with_rows(self):
        found = choice(np.ones(48), 8, rows=np.arange(48) % 3)
        assert found.counts == (24, 48) and all(count % math.lcm(8, 3) == 0 for count in found.counts)

    def test_equal_scores_keep_the_lower_numbers(self):
        assert choice(np.ones(5)).units(2).tolist() == [0, 1]

    def test_narrower_than_a_step_come_halves_of_it(self):
        assert replace(choice(np.ones(70)), rounding=Rounding(16, 8)).counts == (8, 16, 32, 48, 64, 70)
        assert replace(choice(np.ones(32)), rounding=Rounding(16, 4)).counts == (4, 8, 16, 32)

    @pytest.mark.parametrize(
        ("width", "asked", "found"),
        [(128, "auto", 8), (64, "auto", 8), (63, "auto", 4), (16, "auto", 4), (15, "auto", 1), (8, 5, 5)],
    )
    def test_rounding(self, width, asked, found):
        assert rounding(width, asked, convolves=False) == Rounding(found, found)

    @pytest.mark.parametrize(
        ("width", "asked", "found"),
        [
            (128, "auto", Rounding(16, 8)),
            (64, "auto", Rounding(16, 8)),
            (32, "auto", Rounding(16, 4)),
            (31, "auto", Rounding(4, 4)),
            (15, "auto", Rounding(1, 1)),
            (128, 5, Rounding(5, 5)),
        ],
    )
    def test_convolutions_are_rounded_to_what_a_processor_computes_at_once(self, width, asked, found):
        assert rounding(width, asked, convolves=True) == found
