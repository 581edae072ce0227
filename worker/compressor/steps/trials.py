"""What a whole cut loses after its refit, measured while widths are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from app.spec.schema import Prune
from worker.compressor.context import Stage
from worker.compressor.distillation.objective import output_kind
from worker.compressor.errors import GraphError
from worker.compressor.evaluation.exam import divergence
from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job
from worker.compressor.pruning.trials import CutTrials
from worker.compressor.steps.recovery import repaired
from worker.compressor.steps.samples import RECOVERY, refit_rows

#: After so many few exchanges were still found to be better.
MOST_TRIALS = 10
#: Fewer change little.
FEWEST_TRIALS = 4
#: About fifteen seconds on two cores: forward passes of both networks over all rows, the solving of each layer on top.
AFFORDABLE_MACS = 2.5e11


def trials_for(job: Job, step: int, options: Prune, stage: Stage) -> CutTrials | None:
    """Refits a cut on every other row that its recovery will see, and examines it on the rest.

    None where the spec says itself what decides between groups, no refit follows, or trials take more than seconds.
    """
    if options.structure != "channels" or options.scope != "global" or options.allocation != "auto":
        return None
    if options.recovery == "none" or not options.is_refitted or not job.has_data or job.view(job.network) is None:
        return None
    rows = refit_rows(job, options.recovery.samples, RECOVERY + step)
    fitted, examined = rows.halves()
    feeds = tuple(examined.feeds[port.name] for port in job.original.inputs)
    number = min(MOST_TRIALS, int(AFFORDABLE_MACS / (2 * (rows.num_plain + rows.num_mixtures) * job.counts.macs)))
    if number < FEWEST_TRIALS or not len(feeds[0]):
        return None
    before = job.runner(job.original)(feeds)[0]
    kind, known = output_kind(before, job.task), dict[str, float]()

    def lost(analysis: Analysis, kept: Mapping[int, np.ndarray]) -> float:
        key = json.dumps({group: units.tolist() for group, units in kept.items()}, sort_keys=True)
        if key not in known:
            known[key] = measured(analysis, kept)
            job.context.metric("divergence_tried", len(known) - 1, known[key])
            stage.metrics["tried"] = len(known)
        return known[key]

    def measured(analysis: Analysis, kept: Mapping[int, np.ndarray]) -> float:
        try:
            made = cut(job.network, analysis, kept).network
        except GraphError:
            return np.inf
        found = repaired(job, made, fitted, progress=lambda share: job.context.check())
        value = float(divergence(kind, before, job.runner(made if found is None else found[0])(feeds)[0]).mean())
        return value if np.isfinite(value) else np.inf

    return CutTrials(lost, number)
