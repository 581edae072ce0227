"""What a prune step may leave at most, and what it could not touch."""

from __future__ import annotations

from collections.abc import Mapping

from app.spec.schema import Prune
from worker.compressor.job import Job
from worker.compressor.pruning.selection import LEFT_OUT
from worker.compressor.report.counts import layer_rows, pins

_DEAR = 0.2  # share of the MACs from which on a reason to keep layers is worth a warning


def ceilings_of(job: Job, options: Prune) -> dict[str, float]:
    """The counts that the targets allow, of the uploaded network whatever the step."""
    assert options.target is not None
    whole = {"macs": job.counts.macs, "params": job.counts.num_params}
    given = {"macs": options.target.macs, "params": options.target.params}
    return {name: target.resolve(whole[name]) for name, target in given.items() if target is not None}


def note_kept(job: Job, kept_because: Mapping[str, str]) -> None:
    """Remember why layers are kept whole; what keeps many MACs is a warning."""
    job.proven.kept_because.update(kept_because)
    for pin in pins(layer_rows(job.counts, job.counts, kept_because)):
        if pin["share"] >= _DEAR and pin["why"] != LEFT_OUT:
            job.context.warn(f"{pin['share']:.0%} of the MACs were not up for removal: {pin['why']}")
