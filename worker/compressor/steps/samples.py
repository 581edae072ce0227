"""The rows that a step looks at the network with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.spec.schema import Prune, Recovery
from worker.compressor.context import Stage
from worker.compressor.data.mixing import ENOUGH_ROWS, filled_up
from worker.compressor.distillation.objective import OutputKind, output_kind
from worker.compressor.evaluation.footprint import affordable
from worker.compressor.graph.channels.grouping import Group
from worker.compressor.graph.precision import in_float32
from worker.compressor.graph.proof import Proof
from worker.compressor.graph.training.batch import fixed_batch, has_free_batch
from worker.compressor.job import Feeds, Job
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.evidence import Evidence, Samples

KIND_SAMPLES, PROOF_SAMPLES = 256, 16
FEWEST = 4
# Streams of the job's randomness beside those of the units of work, which are numbered from 0.
PROOF, RECOVERY, EVIDENCE, STATISTICS, SENSITIVITY, MIXTURES = 10_000, 20_000, 30_000, 40_000, 50_000, 100_000


def evidence_for(job: Job, step: int, options: Prune, groups: Sequence[Group]) -> Evidence:
    """What the criterion may look at: rows of the training split, where it asks for any."""
    if not job.has_data or not CRITERIA.get(options.criterion).needs:
        return Evidence(job.network, groups, options.combine)
    view, fixed = job.view(job.network), fixed_batch(job.network)
    wanted = options.recovery.samples if options.recovery != "none" else Recovery().samples
    rows = job.data.train.sample(wanted, job.context.rng(EVIDENCE + step))
    samples = Samples(
        job.named(rows),
        rows.targets(),
        job.task,
        output_kinds(job),
        affordable_rows(job, max(wanted, ENOUGH_ROWS), 1) if view is not None or fixed is None else fixed,
        job.context.spec.seed,
        job.context.check,
    )
    return Evidence(job.network, groups, options.combine, view or in_float32(job.network), samples, options.is_refitted)


def proof_feeds(job: Job) -> Feeds:
    """The few rows on which a cut is proven: a whole batch where the file fixes it."""
    is_free = has_free_batch(job.network)
    rows = affordable_rows(job, PROOF_SAMPLES, 3) if is_free else fixed_batch(job.network) or 1
    return job.feeds(job.data.val, rows, PROOF)


@dataclass(frozen=True)
class RefitRows:
    """Inputs that layers are refitted on: the first `num_plain` are rows of the data, those behind them mixtures."""

    feeds: Feeds
    num_plain: int

    @property
    def num_mixtures(self) -> int:
        """How many are made up."""
        return len(next(iter(self.feeds.values()))) - self.num_plain

    def halves(self) -> tuple[RefitRows, RefitRows]:
        """Every other row, and the rest."""
        first, second = ({name: feed[at::2] for name, feed in self.feeds.items()} for at in (0, 1))
        return RefitRows(first, -(-self.num_plain // 2)), RefitRows(second, self.num_plain // 2)


def refit_rows(job: Job, rows: int, stream: int, enough: int = ENOUGH_ROWS) -> RefitRows:
    """Up to `rows` rows of the training split, and mixtures of them where they are not `enough`."""
    feeds = job.feeds(job.data.train, affordable_rows(job, rows, 2), stream)
    count = affordable_rows(job, enough, 2)
    return RefitRows(filled_up(feeds, count, job.context.rng(MIXTURES + stream)), len(next(iter(feeds.values()))))


def note_proof(job: Job, step: int, stage: Stage, proof: Proof) -> None:
    """What the proof of a cut says, among the metrics; that it says nothing is a warning."""
    if proof.vacuous:
        job.context.warn("the proof of the cut says nothing: what was removed does not matter on these samples")
    stage.metrics |= {"proof_error": proof.error, "proof_control": proof.control, "vacuous": proof.vacuous}
    job.context.metric("proof_error", step, proof.error)


def output_kinds(job: Job) -> tuple[OutputKind | None, ...]:
    """What the numbers of each output are, read off the original's answers."""
    rows = job.data.train.sample(KIND_SAMPLES, np.random.default_rng(job.context.spec.seed))
    return tuple(output_kind(answer, job.task) for answer in job.answers.answers(rows, slice(None)))


def affordable_rows(job: Job, samples: int, num_networks: int) -> int:
    """As many samples as so many networks side by side have room for in a gigabyte, but a few in any case."""
    return min(samples, max(FEWEST, affordable(job.original, job.shapes, (1 << 30) // num_networks)))
