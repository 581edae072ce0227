"""A prune step: what to remove is chosen, removed, and where layers get narrower or go, proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from app.spec.schema import Prune
from app.spec.sensitivity import Sensitivity
from worker.compressor.context import Stage
from worker.compressor.graph.channels.grouping import Group
from worker.compressor.graph.counts import count
from worker.compressor.graph.surgery import Cut
from worker.compressor.job import Job
from worker.compressor.pruning.evidence import Evidence
from worker.compressor.pruning.structures import Masking, Narrowing, Shortening, structure_of
from worker.compressor.steps.aiming import cut_to_targets
from worker.compressor.steps.limits import note_kept
from worker.compressor.steps.metering import is_measured, meter_for
from worker.compressor.steps.samples import evidence_for, note_proof
from worker.compressor.steps.shortening import take_out
from worker.compressor.steps.trials import trials_for


def prune(job: Job, step: int, options: Prune) -> None:
    """Remove what the structure says until the targets are met.

    Raises:
        TargetUnreachable, NothingRemoved, DataNeeded: see `Narrowing.choose`.
        GraphError: where the cut network does not compute what the masked one does.
    """
    with job.context.stage("prune") as stage:

        def look(groups: Sequence[Group]) -> Evidence:
            evidence, samples = evidence_for(job, step, options, groups), Sensitivity().samples
            is_by_sensitivity = is_measured(job, options, len(groups), samples)
            stage.metrics["allocation"] = "sensitivity" if is_by_sensitivity else "score"
            trials = trials_for(job, step, options, stage)
            if not is_by_sensitivity:
                return replace(evidence, trials=trials)
            meter = meter_for(job, samples, refit=options.is_refitted, told=job.context.progress)
            return replace(evidence, meter=meter, trials=trials)

        structure = structure_of(options)(job.network, job.shapes, options, look)
        if isinstance(structure, Narrowing):
            _narrow(job, step, options, structure, stage)
        elif isinstance(structure, Shortening):
            take_out(job, step, options, structure, stage)
        elif isinstance(structure, Masking):
            _mask(job, step, options, structure, stage)
        job.proven.removed_in.append(step)


def _narrow(job: Job, step: int, options: Prune, structure: Narrowing, stage: Stage) -> None:
    """Cut to the targets, and prove the cut."""
    choice, made, proof, found = cut_to_targets(job, step, options, structure)
    stage.metrics |= found
    if made.inexact:
        job.context.warn(_told_inexact(made))
    note_proof(job, step, stage, proof)
    before, job.network = job.network, made.network
    job.proven.cuts.append({"units": {str(group): units.tolist() for group, units in choice.kept.items()}})
    note_kept(job, choice.kept_because)
    sources = {name: origin.source for name, origin in before.origins.items()}
    job.proven.inexact += [
        row | {"weights": sorted({sources.get(name, name) for name in row["weights"]})} for row in made.inexact
    ]


def _mask(job: Job, step: int, options: Prune, structure: Masking, stage: Stage) -> None:
    """Set weights to zero, of which training makes nothing else again."""
    target = options.target.sparsity if options.target else None
    num_params = count(job.network, job.shapes).num_params
    num_zeros = None if target is None else math.ceil((target.share or 0.0) * num_params)
    masks = structure.choose(num_zeros, job.context.rng(step))
    made = job.network.copy()
    for name, kept in masks.kept.items():
        made.tensors[name] = np.where(kept, made.tensors[name], np.zeros((), made.tensors[name].dtype))
    job.network = made
    job.proven.masked = sorted({*job.proven.masked, *masks.kept})
    job.proven.kept_because.update(masks.kept_because)
    after = count(made, job.shapes)
    stage.metrics |= {"sparsity": 1 - after.nonzero_params / after.num_params}
    job.context.warn("zeros among the weights make the file smaller once packed; plain runtimes are no faster for them")


def _told_inexact(made: Cut) -> str:
    reasons = list(dict.fromkeys(row["why"] for row in made.inexact))
    more = f", and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
    return f"a part of the cut cannot be exact and relies on the recovery: {'; '.join(reasons[:2])}{more}"
