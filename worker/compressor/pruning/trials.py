"""Widths that are tried: one group gets channels of another, and what is lost once the network is refitted decides.

Predicted losses are of one group at a time, with all others whole. Where much goes at once they say less and less of what
a refit leaves, but still which exchanges are worth trying.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from worker.compressor.pruning.choices import Choice
from worker.compressor.pruning.descent import Widths
from worker.compressor.pruning.sensitivity import Losses

Cut = TypeVar("Cut")
Other = TypeVar("Other")
Key = tuple[tuple[int, int], ...]
#: Where this share of what a target counts stays, or more, predicted losses say enough.
DEEP = 0.35
#: A group takes or gives about this share of its units at once: less could not be told apart on a few hundred rows.
STEP = 1 / 8
#: What is tried has to lose this share less: the best of several is lower than it is by chance alone.
MARGIN = 0.03
#: So many exchanges, by what they are predicted to cost, are priced before one is tried.
MOST_OFFERS = 32


@dataclass(frozen=True)
class Trials(Generic[Cut]):
    """What may be tried: each of `folds` says what the network loses by a cut, refitted on some rows, on other rows.

    No exchange is looked at any more once `number` such losses were measured.
    """

    folds: Sequence[Callable[[Cut], float]]
    number: int

    def told(self, cut: Callable[[Other], Cut]) -> Trials[Other]:
        """The same of cuts in other words, which `cut` translates."""

        def other(lost: Callable[[Cut], float]) -> Callable[[Other], float]:
            return lambda words: lost(cut(words))

        return Trials([other(lost) for lost in self.folds], self.number)


def improved(
    choices: Sequence[Choice],
    widths: Mapping[int, int],
    floors: Mapping[int, int],
    fits: Callable[[Widths], bool],
    fill: Callable[[Widths], Widths],
    losses: Losses,
    trials: Trials[Widths],
) -> Widths:
    """Widths that fit as `widths` do: each exchange that lost less on all folds together was kept.

    The next to be tried is always the one of the lowest predicted loss; one that does not lose less on the first folds is
    not measured on the others. `fill` gives back steps for which there is room.
    """
    found, tried, measured = dict(widths), {_key(widths)}, dict[tuple[int, Key], float]()

    def lost(made: Widths, fold: int) -> float:
        key = fold, _key(made)
        if key not in measured:
            measured[key] = trials.folds[fold](made)
        return measured[key]

    def is_better(offer: Widths) -> bool:
        new = old = 0.0
        for fold in range(len(trials.folds)):
            new, old = new + lost(offer, fold), old + lost(found, fold)
            if not new < (1 - MARGIN) * old:
                return False
        return True

    while True:
        for offer in _offers(choices, found, floors, fits, fill, losses):
            if len(measured) >= trials.number:
                return found
            if _key(offer) not in tried:
                tried.add(_key(offer))
                if is_better(offer):
                    found = offer
                    break
        else:
            return found


def _offers(
    choices: Sequence[Choice],
    widths: Widths,
    floors: Mapping[int, int],
    fits: Callable[[Widths], bool],
    fill: Callable[[Widths], Widths],
    losses: Losses,
) -> list[Widths]:
    """What one exchange makes of the widths, the lowest predicted loss first."""

    def predicted(made: Widths) -> float:
        return sum(losses[choice.group](made[choice.group]) for choice in choices)

    pairs = []
    for taker, giver in itertools.permutations(choices, 2):
        wider = taker.at_least(widths[taker.group] + STEP * taker.num_units)
        narrower = next(_narrower(giver, widths[giver.group], floors[giver.group]), None)
        if wider > widths[taker.group] and narrower is not None:
            made = widths | {taker.group: wider, giver.group: narrower}
            pairs.append((predicted(made), taker.group, giver, made))
    pairs.sort(key=lambda pair: (pair[0], pair[1], pair[2].group))
    found = {}
    for _, _, giver, made in pairs[:MOST_OFFERS]:
        below = (made | {giver.group: width} for width in _narrower(giver, widths[giver.group], floors[giver.group]))
        if (fitting := next((offer for offer in below if fits(offer)), None)) is not None:
            filled = fill(fitting)
            found[_key(filled)] = filled
    return sorted(found.values(), key=lambda made: (predicted(made), _key(made)))


def _narrower(choice: Choice, width: int, floor: int) -> Iterator[int]:
    """Widths below, a step apart or as near to that as rounding allows, down to the floor."""
    while (below := choice.below(width)) is not None and below >= floor:
        width = max(min(below, choice.at_least(width - STEP * choice.num_units)), floor)
        yield width


def _key(widths: Mapping[int, int]) -> Key:
    return tuple(sorted(widths.items()))
