"""Residual branches are chosen, taken out, and proven to be all that went."""

from __future__ import annotations

from collections.abc import Sequence

from app.spec.schema import Prune
from worker.compressor.context import Stage
from worker.compressor.errors import GraphError
from worker.compressor.graph.precision import in_float32
from worker.compressor.graph.proof import Proof, prove_shortened
from worker.compressor.graph.residuals import Residual
from worker.compressor.graph.shortening import shorten, silenced
from worker.compressor.job import Feeds, Job
from worker.compressor.pruning.structures import Shortening
from worker.compressor.steps.limits import ceilings_of, note_kept
from worker.compressor.steps.samples import note_proof, proof_feeds


def take_out(job: Job, step: int, options: Prune, structure: Shortening, stage: Stage) -> None:
    """Take branches out until the targets are met; those that fail the proof stay, and others make up for them.

    Raises:
        TargetUnreachable, NothingRemoved, DataNeeded: see `Shortening.choose`.
    """
    feeds, ceilings, refused = proof_feeds(job), ceilings_of(job, options), dict[str, str]()
    while True:
        skips = structure.choose(ceilings, job.context.rng(step), refused)
        failing = _failing(job, skips.removed, feeds)
        if not failing:
            break
        refused |= dict.fromkeys(failing, "the shortened network would not compute what the original does without it")
        job.context.warn(
            f"the branches that end in {', '.join(failing[:4])} stay, because taking them out failed its proof"
        )
    note_proof(job, step, stage, _proven(job, skips.removed, feeds))
    job.network = shorten(job.network, skips.removed)
    job.proven.cuts.append({"skips": [branch.add for branch in skips.removed]})
    note_kept(job, skips.kept_because)
    stage.metrics |= {"branches": len(skips.removed)}


def _failing(job: Job, removed: Sequence[Residual], feeds: Feeds) -> list[str]:
    """The sums whose branches cannot go by themselves, or else with those before them; none where all can go."""
    if _holds(job, removed, feeds):
        return []
    alone = [branch.add for branch in removed if not _holds(job, [branch], feeds)]
    return alone or [next(removed[n].add for n in range(len(removed)) if not _holds(job, removed[: n + 1], feeds))]


def _holds(job: Job, removed: Sequence[Residual], feeds: Feeds) -> bool:
    try:
        _proven(job, removed, feeds)
    except GraphError:
        return False
    return True


def _proven(job: Job, removed: Sequence[Residual], feeds: Feeds) -> Proof:
    """The proof, in float32 whatever the network computes in."""
    whole = in_float32(job.network)
    sums = [branch.add for branch in removed]
    return prove_shortened(whole, shorten(whole, removed), silenced(whole, removed), sums, feeds)
