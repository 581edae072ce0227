"""What a whole cut loses after its refit, measured while widths are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.spec.schema import Prune
from worker.compressor.context import Stage
from worker.compressor.distillation.objective import output_kind
from worker.compressor.errors import GraphError
from worker.compressor.evaluation.exam import divergence
from worker.compressor.graph.network import Network
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job
from worker.compressor.pruning.structures import Choice
from worker.compressor.pruning.trials import Trials
from worker.compressor.steps.metering import is_open
from worker.compressor.steps.recovery import repaired
from worker.compressor.steps.samples import RECOVERY, RefitRows, refit_rows

#: After so many few exchanges were still found to be better.
MOST_TRIALS = 12
#: Fewer change little.
FEWEST_TRIALS = 4
#: Up to twenty seconds on two cores: forward passes of both networks over all rows, the solving of each layer on top.
AFFORDABLE_MACS = 3e11


def trials_for(job: Job, step: int, options: Prune, stage: Stage) -> Trials[Choice] | None:
    """Refits a cut on every other row that its recovery will see, and examines it on the rest, or the other way round.

    None where the spec says itself what decides between groups, no refit follows, or trials take more than seconds.
    """
    if options.recovery == "none" or not options.is_refitted or not is_open(job, options):
        return None
    rows = refit_rows(job, options.recovery.samples, RECOVERY + step)
    number = min(MOST_TRIALS, int(AFFORDABLE_MACS / (2 * (rows.num_plain + rows.num_mixtures) * job.counts.macs)))
    if number < FEWEST_TRIALS:
        return None
    first, second = rows.halves()
    return Trials([_Fold(job, stage, first, second), _Fold(job, stage, second, first)], number)


@dataclass
class _Fold:
    """Called with what to keep: the divergence from the original on the rows `examined`, of a cut that is refitted on those
    `fitted`; infinite where there is no such cut, or its outputs are not finite.
    """

    job: Job
    stage: Stage
    fitted: RefitRows
    examined: RefitRows

    def __call__(self, choice: Choice) -> float:
        context = self.job.context
        try:
            made = cut(self.job.network, choice.analysis, choice.kept).network
        except GraphError:
            return np.inf
        found = repaired(self.job, made, self.fitted, progress=lambda share: context.check())
        after = self._answers(made if found is None else found[0])
        value = float(divergence(output_kind(self._before, self.job.task), self._before, after).mean())
        number = int(self.stage.metrics.get("tried", 0))
        self.stage.metrics["tried"] = number + 1
        context.metric("divergence_tried", number, value)
        return value if np.isfinite(value) else np.inf

    @cached_property
    def _before(self) -> np.ndarray:
        # Most cuts are not deep, and nothing is tried then.
        return self._answers(self.job.original)

    def _answers(self, network: Network) -> np.ndarray:
        return self.job.runner(network)(tuple(self.examined.feeds[port.name] for port in self.job.original.inputs))[0]
