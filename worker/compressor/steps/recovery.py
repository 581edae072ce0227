"""The repair of a cut network without labels."""

from __future__ import annotations

from collections.abc import Callable

from app.spec.schema import Prune
from worker.compressor.graph.network import Network
from worker.compressor.job import Feeds, Job, taken_back
from worker.compressor.pruning.reconstruction.lockstep import Repair, reconstruct
from worker.compressor.steps.samples import RECOVERY, refit_feeds


def recover(job: Job, step: int, options: Prune) -> None:
    """Refit and re-estimate on unlabelled samples, kept only where it makes the network better."""
    context = job.context
    with context.stage("recover") as stage:
        recovery = options.recovery
        assert recovery != "none"
        if not job.has_data and not job.is_synthetic:
            context.warn("there is no data set, so the cut network was not repaired: recovery needs samples")
            return
        feeds, num_plain = refit_feeds(job, recovery.samples, RECOVERY + step)
        found = repaired(
            job,
            job.network,
            feeds,
            num_plain,
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
        stage.metrics |= {"samples": num_plain, "mixtures": len(next(iter(feeds.values()))) - num_plain}
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
    feeds: Feeds,
    num_plain: int,
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
        feeds,
        refit=refit,
        batchnorm=batchnorm,
        masked=frozenset(job.proven.masked),
        untouched=job.untouched,
        only=only,
        num_plain=num_plain,
        progress=progress,
    )
    return taken_back(cut, fitted), repair
