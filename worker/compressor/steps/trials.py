"""What a whole cut loses after its refit, measured while widths are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
from worker.compressor.steps.samples import RECOVERY, RefitRows, refit_rows

#: After so many few exchanges were still found to be better.
MOST_TRIALS = 12
#: Fewer change little.
FEWEST_TRIALS = 4
#: Up to twenty seconds on two cores: forward passes of both networks over all rows, the solving of each layer on top.
AFFORDABLE_MACS = 3e11


def trials_for(job: Job, step: int, options: Prune, stage: Stage) -> CutTrials | None:
    """Refits a cut on every other row that its recovery will see, and examines it on the rest, or the other way round.

    None where the spec says itself what decides between groups, no refit follows, or trials take more than seconds.
    """
    if options.structure != "channels" or options.scope != "global" or options.allocation != "auto":
        return None
    if options.recovery == "none" or not options.is_refitted or not job.has_data or job.view(job.network) is None:
        return None
    rows = refit_rows(job, options.recovery.samples, RECOVERY + step)
    number = min(MOST_TRIALS, int(AFFORDABLE_MACS / (2 * (rows.num_plain + rows.num_mixtures) * job.counts.macs)))
    if number < FEWEST_TRIALS:
        return None
    first, second = rows.halves()
    return CutTrials([_fold(job, stage, first, second), _fold(job, stage, second, first)], number)


def _fold(
    job: Job, stage: Stage, fitted: RefitRows, examined: RefitRows
) -> Callable[[Analysis, Mapping[int, np.ndarray]], float]:
    """The divergence from the original on some rows, of a cut that is refitted on the others; infinite where there is no such
    cut, or its outputs are not finite.
    """
    feeds = tuple(examined.feeds[port.name] for port in job.original.inputs)
    before = job.runner(job.original)(feeds)[0]
    kind = output_kind(before, job.task)

    def lost(analysis: Analysis, kept: Mapping[int, np.ndarray]) -> float:
        try:
            made = cut(job.network, analysis, kept).network
        except GraphError:
            return np.inf
        found = repaired(job, made, fitted, progress=lambda share: job.context.check())
        value = float(divergence(kind, before, job.runner(made if found is None else found[0])(feeds)[0]).mean())
        number = int(stage.metrics.get("tried", 0))
        stage.metrics["tried"] = number + 1
        job.context.metric("divergence_tried", number, value)
        return value if np.isfinite(value) else np.inf

    return lost
