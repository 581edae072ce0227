"""A cut that is proven before it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from worker.compressor.errors import GraphError
from worker.compressor.graph.precision import in_float32
from worker.compressor.graph.proof import Proof, prove
from worker.compressor.graph.surgery import Cut, cut
from worker.compressor.job import Feeds, Job
from worker.compressor.pruning.structures import Choice, Narrowing, Price
from worker.compressor.steps.samples import proof_feeds


def proven_cut(
    job: Job,
    step: int,
    structure: Narrowing,
    ceilings: Mapping[str, float],
    prices: Mapping[str, Price] | None = None,
) -> tuple[Choice, Cut, Proof]:
    """A cut that meets the ceilings and passes the proof; groups that fail it stay whole, and others make up for them.

    The proof is about the exact groups; what a normalisation over the cut axis makes of the others is for the recovery.
    """
    feeds, refused = proof_feeds(job), dict[int, str]()
    while True:
        rng = job.context.rng(step)
        choice = structure.choose(ceilings, rng, refused, prices)
        exact = {group: units for group, units in choice.kept.items() if choice.analysis.groups[group].exact}
        try:
            proof = _proven(job, choice, exact, feeds)
            return choice, cut(job.network, choice.analysis, choice.kept), proof
        except GraphError as error:
            failing = _failing(job, choice, feeds)
            if not failing:
                raise
            refused |= dict.fromkeys(failing, "the cut network would not compute what the original does without it")
            for group in failing:
                layers = ", ".join(choice.analysis.groups[group].layers[:4])
                job.context.warn(
                    f"the channels of {layers} stay whole, because cutting them failed its proof: {error.detail}"
                )


def _proven(job: Job, choice: Choice, kept: dict[int, np.ndarray], feeds: Feeds) -> Proof:
    """The proof of a cut, in float32 whatever the network computes in: half precision would hide small mistakes."""
    made = cut(job.network, choice.analysis, kept)
    wide = replace(made, network=in_float32(made.network))
    return prove(in_float32(job.network), wide, choice.analysis, feeds)


def _failing(job: Job, choice: Choice, feeds: Feeds) -> list[int]:
    """The groups that cannot be cut by themselves; else the first that cannot be cut with those before it."""
    alone = [group for group in choice.kept if not _holds(job, choice, [group], feeds)]
    if alone:
        return alone
    groups = list(choice.kept)
    return next(([groups[n]] for n in range(1, len(groups)) if not _holds(job, choice, groups[: n + 1], feeds)), [])


def _holds(job: Job, choice: Choice, groups: Sequence[int], feeds: Feeds) -> bool:
    """Whether these groups can be cut together, and the exact ones pass the proof."""
    kept = {group: choice.kept[group] for group in groups}
    exact = {group: units for group, units in kept.items() if choice.analysis.groups[group].exact}
    try:
        cut(job.network, choice.analysis, kept)
        if exact:
            _proven(job, choice, exact, feeds)
    except GraphError:
        return False
    return True
