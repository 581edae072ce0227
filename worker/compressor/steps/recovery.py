"""The repair of a cut network without labels."""

from __future__ import annotations

from collections.abc import Callable

from app.spec.schema import Prune
from worker.compressor.graph.network import Network
from worker.compressor.job import Job, taken_back
from worker.compressor.pruning.reconstruction.lockstep import Repair, reconstruct
from worker.compressor.steps.samples import RECOVERY, RefitRows, refit_rows


def recover(job: Job, step: int, options: Prune) -> None:
    """Refit and re-estimate on unlabelled samples, kept only where it makes the network better."""
    context = job.context
    with context.stage("recover") as stage:
        recovery = options.recovery
        assert recovery != "none"
        if not job.has_data and not job.is_synthetic:
            context.warn("there is no data set, so the cut network was not repaired: recovery needs samples")
            return
        rows = refit_rows(job, recovery.samples, RECOVERY + step)
        found = repaired(
            job,
            job.network,
            rows,
            refit=recovery.refit,
            batchnorm=recovery.batchnorm,
            progress=context.progress,
        )
        if found is None:
            context.warn(
                "the file fixes the number of samples and cannot be freed from it, so the cut network was not repaired"
            )
            return
        (mended, repair), judge = found, job.judge()
        before, after = judge(job.runner(job.network)), judge(job.runner(mended))
        stage.metrics |= {"samples": rows.num_plain, "mixtures": rows.num_mixtures}
        stage.metrics |= {"refitted": len(repair.refitted), "measured": len(repair.measured)}
        stage.metrics |= {"corrected": len(repair.corrected)}
        stage.metrics |= {"before": before.as_dict(), "after": after.as_dict()}
        context.metric(after.name, step, abs(after.value))
        if after > before:
            job.network = mended
        else:
            context.warn("recovery did not make the cut network better on the validation rows, so it stayed as cut")


def repaired(
    job: Job,
    cut: Network,
    rows: RefitRows,
    *,
    refit: bool = True,
    batchnorm: bool = True,
    only: frozenset[str] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Network, Repair] | None:
    """`reconstruct` beside the job's original; zeros and excluded layers of the job stay as they are. None where the batch
    of a file is fixed for good.
    """
    original, view = job.view(job.original), job.view(cut)
    if original is None or view is None:
        return None
    fitted, repair = reconstruct(
        original,
        view,
        rows.feeds,
        refit=refit,
        batchnorm=batchnorm,
        masked=frozenset(job.proven.masked),
        untouched=job.untouched,
        only=only,
        num_plain=rows.num_plain,
        progress=progress,
    )
    return taken_back(cut, fitted), repair
