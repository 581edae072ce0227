"""A sensitivity step: what is lost without a part of each group, and what is left of the whole network at several sizes.

It changes nothing: the findings are a document of the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.spec.schema import Prune, PruneTargets, Recovery
from app.spec.sensitivity import Sensitivity
from app.spec.targets import Target
from worker.compressor.errors import GraphError, NothingRemoved, TargetUnreachable
from worker.compressor.graph.channels.grouping import Group
from worker.compressor.graph.cost import CostModel
from worker.compressor.graph.counts import count
from worker.compressor.graph.network import Network
from worker.compressor.job import Job
from worker.compressor.pruning.choices import Choice
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.sensitivity import Meter
from worker.compressor.pruning.structures.channels import Channels
from worker.compressor.steps.cutting import proven_cut
from worker.compressor.steps.metering import exam_of, examined, is_measured, meter_for
from worker.compressor.steps.recovery import repaired
from worker.compressor.steps.samples import RECOVERY, evidence_for, refit_rows

#: Rows that the points of a trade-off are measured on: they are few, and compared with targets.
TRADEOFF_ROWS = 2048
# The groups' share of the step, as progress goes.
_GROUPS_SHARE = 0.5


def study(job: Job, step: int, options: Sensitivity) -> None:
    """Measure the groups and the trade-off; the findings are in `job.studies`."""
    context, prune = job.context, _as_prune(options)
    with context.stage("sensitivity") as stage:
        if examined(job) is not job.data.val:
            context.warn(
                f"{len(job.data.val)} validation rows are too few to compare networks on, so the figures of the "
                "sensitivity are of rows that layers were refitted on"
            )
        meter = meter_for(job, options.samples, refit=options.refit, told=context.progress)

        def look(groups: Sequence[Group]) -> Evidence:
            evidence = evidence_for(job, step, prune, groups)
            is_by_sensitivity = options.refit and is_measured(job, prune, len(groups), options.samples)
            return replace(evidence, meter=meter) if is_by_sensitivity else evidence

        structure = Channels(job.network, job.shapes, prune, look)
        choices = structure.candidates(context.rng(step), {})
        shown = options.metric or _own_metric(meter.whole)
        groups = _groups(job, structure, choices, meter, options.ratios, shown)
        tradeoff = _tradeoff(job, step, structure, options.tradeoff, shown)
        job.studies.append({
            "metric": shown,
            "options": options.model_dump(mode="json"),
            "num_samples": min(options.samples, len(examined(job))),
            "whole": {**_counted(job, job.network), **meter.whole},
            "groups": groups,
            "kept_because": structure.kept_because({}),
            "tradeoff": tradeoff,
        })  # fmt: skip
        stage.metrics |= {"groups": len(groups), "points": sum(len(group["points"]) for group in groups)}


def _as_prune(options: Sensitivity) -> Prune:
    """The prune step whose groups and scores these are; its target is never asked for."""
    return Prune(
        criterion=options.criterion,
        combine=options.combine,
        include=options.include,
        exclude=options.exclude,
        recovery=Recovery(refit=options.refit),
        target=PruneTargets(macs=Target(share=0.5)),
    )


def _own_metric(whole: Mapping[str, float | None]) -> str:
    """The task's metric where there are labels, else agreement, else the error of the outputs."""
    names = ("accuracy", "rmse", "agreement", "output_error")
    return next(name for name in names if whole.get(name) is not None or name == "output_error")


def _groups(
    job: Job, structure: Channels, choices: Sequence[Choice], meter: Meter, ratios: Sequence[float], shown: str
) -> list[dict[str, Any]]:
    model, found = CostModel(job.network, structure.analysis, job.shapes), []
    for number, choice in enumerate(choices):
        group, points = structure.analysis.groups[choice.group], []
        for point in meter.points(structure.analysis, choice, ratios):
            kept = {choice.group: choice.units(point.num_kept)}
            costs = {"macs": model.macs(kept), "num_params": model.num_params(kept)}
            figures = point.figures or dict.fromkeys(meter.whole)
            points.append({"ratio": point.ratio, "num_kept": point.num_kept, **costs, **figures})
            if (value := figures[shown]) is not None:
                job.context.metric(f"{shown}_without_{point.ratio:.4g}", number, value)
        found.append(
            {"layers": list(group.layers), "num_units": group.num_units, "exact": group.exact, "points": points}
        )
        meter.told(_GROUPS_SHARE * (number + 1) / len(choices))
    return found


def _tradeoff(job: Job, step: int, structure: Channels, targets: Sequence[Target], shown: str) -> list[dict[str, Any]]:
    """The network as it is, then cut to each target, refitted and examined; what cannot be reached says so."""
    if not targets:
        return []
    exam = exam_of(job, TRADEOFF_ROWS)
    found = [{"asked": None, **_counted(job, job.network), **exam(job.runner(job.network))}]
    for number, target in enumerate(targets):
        try:
            _, made, _ = proven_cut(job, step, structure, {"macs": target.resolve(job.counts.macs)})
        except (TargetUnreachable, NothingRemoved, GraphError) as error:
            found.append({"asked": target.asked, "error": error.detail})
            continue
        figures = exam(job.runner(_refitted(job, step, made.network)))
        found.append({"asked": target.asked, **_counted(job, made.network), **figures})
        if (value := figures[shown]) is not None:
            job.context.metric(f"tradeoff_{shown}", round(100 * found[-1]["macs_share"]), value)
        job.context.progress(_GROUPS_SHARE + (1 - _GROUPS_SHARE) * (number + 1) / len(targets))
    return found


def _counted(job: Job, network: Network) -> dict[str, Any]:
    counts = count(network, job.shapes)
    return {"macs": counts.macs, "macs_share": counts.macs / job.counts.macs, "num_params": counts.num_params}


def _refitted(job: Job, step: int, made: Network) -> Network:
    """The cut network as a recovery leaves it."""
    rows = refit_rows(job, Recovery().samples, RECOVERY + step)
    found = repaired(job, made, rows, progress=lambda share: job.context.check())
    return made if found is None else found[0]
