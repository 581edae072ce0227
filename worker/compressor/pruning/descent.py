"""Widths from loss curves: those units go that cost the least predicted loss for what they save, until the ceilings hold."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from worker.compressor.pruning.choices import Choice
from worker.compressor.pruning.sensitivity import Losses

Widths = dict[int, int]
Costs = Callable[[Mapping[int, int]], Mapping[str, float]]
# A group comes down in at most so many steps: costs are counted anew for each.
MOST_STEPS = 64


def descend(
    choices: Sequence[Choice], floors: Mapping[int, int], costs: Costs, ceilings: Mapping[str, float], losses: Losses
) -> Widths:
    """Widths that meet the ceilings, no group below its floor; the floors themselves meet them.

    The sum of the losses is kept small greedily, by loss for what is saved of the counts that are too large. A step of one
    group can only make the steps of others save less, so one that was put off is priced again when its turn comes
    (Minoux 1978, Accelerated greedy algorithms for maximizing submodular set functions).
    """
    widths = {choice.group: choice.num_units for choice in choices}
    found = costs(widths)
    excess = {name: found[name] - ceiling for name, ceiling in ceilings.items() if found[name] > ceiling}
    ways = {choice.group: _way_down(choice, floors[choice.group], losses[choice.group]) for choice in choices}
    queue = [(0.0, group) for group in ways if ways[group]]
    while queue and any(found[name] > ceilings[name] for name in excess):
        _, group = heapq.heappop(queue)
        narrower, loss = ways[group][0]
        after = costs(widths | {group: narrower})
        saved = sum((found[name] - after[name]) / excess[name] for name in excess if found[name] > ceilings[name])
        rate = loss / saved if saved > 0 else np.inf
        if queue and rate > queue[0][0]:
            heapq.heappush(queue, (rate, group))
            continue
        widths[group], found = narrower, after
        ways[group].pop(0)
        if ways[group]:
            heapq.heappush(queue, (0.0, group))
    return widths


def exchange(
    choices: Sequence[Choice],
    widths: Mapping[int, int],
    floors: Mapping[int, int],
    fits: Callable[[Widths], bool],
    losses: Losses,
) -> Widths:
    """Let one group have a step more for a step of another, best exchange first, as long as the sum of the losses falls.

    A greedy descent ends where rounding lets it; the last steps are a knapsack, of which this tries the pairs.
    """
    found = dict(widths)
    for _ in range(len(choices)):
        offers = []
        for wider, narrower in itertools.permutations(choices, 2):
            more, less = wider.above(found[wider.group]), narrower.below(found[narrower.group])
            if more is not None and less is not None and less >= floors[narrower.group]:
                made = found | {wider.group: more, narrower.group: less}
                change = sum(
                    losses[c.group](made[c.group]) - losses[c.group](found[c.group]) for c in (wider, narrower)
                )
                offers.append((change, made))
        offers = sorted((offer for offer in offers if offer[0] < -1e-12), key=lambda offer: offer[0])
        better = next((made for _, made in offers if fits(made)), None)
        if better is None:
            break
        found = better
    return found


def _way_down(choice: Choice, floor: int, loss: Callable[[int], float]) -> list[tuple[int, float]]:
    """The steps from all units to the floor: the width after each, and by how much the loss rises.

    The losses are those of the convex hull, so that a step is never cheaper than the one before it, and the dear first
    step of a curve that flattens later is weighed with what follows.
    """
    counts = np.array([count for count in choice.counts if count >= floor])[::-1]
    counts = counts[np.unique(np.linspace(0, len(counts) - 1, min(len(counts), MOST_STEPS + 1)).round().astype(int))]
    values = np.maximum.accumulate([loss(int(count)) for count in counts])
    hull = [0]
    for at in range(1, len(counts)):
        while len(hull) > 1 and _slope(counts, values, hull[-1], at) <= _slope(counts, values, hull[-2], hull[-1]):
            hull.pop()
        hull.append(at)
    convex = np.interp(-counts, -counts[hull], values[hull])
    return list(zip(counts[1:].tolist(), np.diff(convex).tolist(), strict=True))


def _slope(counts: np.ndarray, values: np.ndarray, first: int, last: int) -> float:
    return float((values[last] - values[first]) / (counts[first] - counts[last]))
