"""How many units each group keeps, so that every target is met by count: never above, and as close as rounding allows.

Costs rise with every unit kept, so a bisection on one number (a score threshold, or a share) finds the last allocation
that fits; a greedy fill then gives back steps for which there is still room.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import numpy as np

from worker.compressor.errors import TargetUnreachable
from worker.compressor.pruning.choices import Choice
from worker.compressor.pruning.descent import Costs, Widths, descend, exchange
from worker.compressor.pruning.sensitivity import Losses
from worker.compressor.pruning.trials import DEEP, Trials, improved

Scope = Literal["global", "layer", "isomorphic"]
# Levels, and the allocation at each: from the widest to the narrowest.
Ladder = tuple[list[float], Callable[[float], Widths]]

# A global ranking can wipe a layer out. No group goes below these shares of its units while a target can be met without.
SOFT_FLOORS = (0.2, 0.1, 0.0)


def allocate(
    choices: Sequence[Choice],
    costs: Costs,
    ceilings: Mapping[str, float],
    scope: Scope,
    losses: Losses | None = None,
    trials: Trials[Widths] | None = None,
) -> Widths:
    """Units to keep by group, for the groups of `choices`.

    `costs` gives the figures of an allocation, which rise with every unit; `ceilings` what each may be at most. The result
    meets every ceiling, and no group can keep one rounding step more without breaking one. With `losses` their sum decides
    between groups, not the scores; `trials` then improves on deep cuts.

    Raises:
        TargetUnreachable: where even the narrowest allocation is above a ceiling.
    """

    def fits(widths: Widths) -> bool:
        found = costs(widths)
        return all(found[name] <= ceiling for name, ceiling in ceilings.items())

    for share in SOFT_FLOORS:
        floors = {
            choice.group: choice.at_least(share * choice.num_units if choice.floor is None else choice.floor)
            for choice in choices
        }
        if fits(floors):
            break
    else:
        raise _unreachable(costs(floors), ceilings)
    if losses is not None:

        def gain(choice: Choice, width: int) -> float:
            """How much less is lost with a step more."""
            return losses[choice.group](width) - losses[choice.group](choice.above(width) or width)

        def fill(widths: Widths) -> Widths:
            return _fill(choices, widths, fits, gain)

        widths = fill(descend(choices, floors, costs, ceilings, losses))
        widths = fill(exchange(choices, widths, floors, fits, losses))
        if trials is not None:
            whole = costs({choice.group: choice.num_units for choice in choices})
            if any(ceiling < DEEP * whole[name] for name, ceiling in ceilings.items()):
                return improved(choices, widths, floors, fits, fill, losses, trials)
        return widths
    rank = {"global": _by_score, "layer": _by_share, "isomorphic": _by_kind}[scope]
    widths = _bisect(rank(choices), floors, fits)
    # In a layer-wise cut the group that kept the smallest share comes first, else the one whose next unit scores best.
    return _fill(choices, widths, fits, _smallness if scope == "layer" else _next_score)


def _by_score(choices: Sequence[Choice]) -> Ladder:
    """Allocations from widest to narrowest: each keeps, of every group, the units above a threshold of relative score."""
    thresholds = np.unique(np.concatenate([choice.relative for choice in choices]))

    def keep_above(threshold: float) -> Widths:
        return {c.group: c.at_least(int(np.searchsorted(-c.relative, -threshold, side="left"))) for c in choices}

    return [-1.0, *thresholds.tolist()], keep_above


def _by_share(choices: Sequence[Choice]) -> Ladder:
    """Allocations from widest to narrowest: each keeps the same share of every group."""
    finest = max(choice.num_units for choice in choices)
    shares = sorted({k / n for n in {finest, *(c.num_units for c in choices)} for k in range(n + 1)}, reverse=True)

    def keep(share: float) -> Widths:
        return {c.group: c.at_least(share * c.num_units - 1e-9) for c in choices}

    return shares, keep


def _by_kind(choices: Sequence[Choice]) -> Ladder:
    """Allocations from widest to narrowest: each keeps the same share of the units of every kind of group, the best of them
    wherever they lie (Fang et al. 2024, Isomorphic Pruning, arXiv 2407.04616).
    """
    kinds: dict[Hashable, np.ndarray] = {}
    for choice in choices:
        kinds[choice.kind] = np.concatenate([kinds.get(choice.kind, np.empty(0)), choice.relative])
    falling = {kind: np.sort(scores)[::-1] for kind, scores in kinds.items()}
    shares = sorted({k / len(scores) for scores in falling.values() for k in range(len(scores) + 1)}, reverse=True)

    def keep(share: float) -> Widths:
        widths = {}
        for choice in choices:
            scores = falling[choice.kind]
            count = int(share * len(scores) + 1e-9)
            lowest = scores[count - 1] if count else np.inf
            widths[choice.group] = choice.at_least(int(np.searchsorted(-choice.relative, -lowest, side="right")))
        return widths

    return shares, keep


def _bisect(ladder: Ladder, floors: Widths, fits: Callable[[Widths], bool]) -> Widths:
    """The widest rung that fits, no group below its floor; the floors themselves fit."""

    levels, keep = ladder

    def rung(at: int) -> Widths:
        return {group: max(width, floors[group]) for group, width in keep(levels[at]).items()}

    low, high = 0, len(levels)
    while low < high:
        middle = (low + high) // 2
        if fits(rung(middle)):
            high = middle
        else:
            low = middle + 1
    return rung(low) if low < len(levels) else dict(floors)


def _fill(
    choices: Sequence[Choice],
    widths: Widths,
    fits: Callable[[Widths], bool],
    value: Callable[[Choice, int], float],
) -> Widths:
    """Give back single steps, the most valuable first, until no group has room for one."""
    open_choices = [choice for choice in choices if choice.above(widths[choice.group])]
    while open_choices:
        choice = max(open_choices, key=lambda c: (value(c, widths[c.group]), -c.group))
        wider = choice.above(widths[choice.group])
        if wider is not None and fits(widths | {choice.group: wider}):
            widths = widths | {choice.group: wider}
        else:
            # Costs only rise from here, so what does not fit now never will.
            open_choices.remove(choice)
    return widths


def _smallness(choice: Choice, width: int) -> float:
    return -width / choice.num_units


def _next_score(choice: Choice, width: int) -> float:
    return float(choice.relative[min(width, choice.num_units - 1)])


def _unreachable(found: Mapping[str, float], ceilings: Mapping[str, float]) -> TargetUnreachable:
    name = next(name for name, ceiling in ceilings.items() if found[name] > ceiling)
    asked, best = ceilings[name], found[name]
    detail = f"{name} cannot go down to {asked:.10g}: with every prunable layer at its narrowest, {best:.10g} remain"
    return TargetUnreachable(detail, asked=asked, best=best)
