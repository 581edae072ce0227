"""Widths by predicted loss, against every allocation there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.worker.compressor.pruning.test_allocation import Chain, choice
from worker.compressor.pruning.allocation import allocate


def problem(seed, step=1):
    """Four groups of a chain, and a loss for each: steep or flat, of one power or another."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(4, 13, 4).tolist()
    options = [choice(rng.random(width), step, group=group) for group, width in enumerate(widths)]
    scales, powers = 10 ** rng.uniform(-2, 0, 4), rng.uniform(1, 3, 4)

    def loss(group):
        return lambda kept: scales[group] * (1 - kept / widths[group]) ** powers[group]

    return Chain(widths), options, {group: loss(group) for group in range(4)}


def total(losses, widths):
    return sum(losses[group](kept) for group, kept in widths.items())


class TestAllocateByLoss:
    @pytest.mark.parametrize("step", [1, 2])
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
    def test_it_comes_close_to_the_best_of_all_allocations(self, step, share):
        excess = []
        for seed in range(12):
            model, options, losses = problem(seed, step)
            ceiling = int(share * model({})["macs"])
            every = [dict(enumerate(kept)) for kept in itertools.product(*(o.counts for o in options))]
            # The same floor that keeps a ranking from wiping a layer out.
            floors = {o.group: o.at_least(0.2 * o.num_units) for o in options}
            fitting = [w for w in every if model(w)["macs"] <= ceiling and all(w[g] >= floors[g] for g in w)]
            if not fitting:
                continue
            found = allocate(options, model, {"macs": ceiling}, "global", losses)
            assert model(found)["macs"] <= ceiling
            best = min(total(losses, widths) for widths in fitting)
            excess.append(total(losses, found) / best - 1 if best else 0.0)
        assert len(excess) >= 10 and np.median(excess) < 1e-9 and max(excess) < 0.2

    def test_no_step_more_would_fit(self):
        model, options, losses = problem(3, 2)
        ceiling = int(0.5 * model({})["macs"])
        found = allocate(options, model, {"macs": ceiling}, "global", losses)
        for option in options:
            wider = option.above(found[option.group])
            assert wider is None or model(found | {option.group: wider})["macs"] > ceiling

    def test_all_ceilings_are_met(self):
        model, options, losses = problem(1)
        ceilings = {"macs": int(0.7 * model({})["macs"]), "params": int(0.4 * model({})["params"])}
        found = model(allocate(options, model, ceilings, "global", losses))
        assert all(found[name] <= ceiling for name, ceiling in ceilings.items())

    def test_what_loses_nothing_goes_first(self):
        options = [choice(np.ones(8), group=0), choice(np.ones(8), group=1)]
        losses = {0: lambda kept: 0.0, 1: lambda kept: (8 - kept) * 1.0}
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 11}, "global", losses)
        assert kept == {0: 3, 1: 8}

    def test_a_dear_first_step_is_weighed_with_what_follows(self):
        """A layer that is nearly free once it is touched is narrowed further than one that grows dearer and dearer."""
        options = [choice(np.ones(8), group=0), choice(np.ones(8), group=1)]
        losses = {0: lambda kept: 1.0 if kept < 8 else 0.0, 1: lambda kept: (8 - kept) * 0.5}
        kept = allocate(options, lambda kept: {"params": sum(kept.values())}, {"params": 10}, "global", losses)
        assert kept == {0: 2, 1: 8}

    def test_wide_groups_come_down_in_few_steps(self):
        priced = []

        def costs(kept):
            priced.append(dict(kept))
            return {"params": sum(kept.get(group, 4096) for group in range(2))}

        options = [choice(np.ones(4096), group=group) for group in range(2)]
        losses = {group: (lambda kept: (4096 - kept) ** 2.0) for group in range(2)}
        kept = allocate(options, costs, {"params": 4096}, "global", losses)
        assert sum(kept.values()) == 4096 and math.isclose(kept[0], kept[1], abs_tol=64) and len(priced) < 400
