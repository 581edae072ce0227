"""One compression from request to outcome: prepare, measure the original, do the steps, prove the result.

Each step is checkpointed, and a later attempt goes on after the last one that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from app.spec.schema import Prune, Spec
from app.spec.sensitivity import Sensitivity
from worker.compressor.context import Context, Stage
from worker.compressor.delivery import rehearse
from worker.compressor.errors import CompressorError, NothingRemoved, TargetUnreachable
from worker.compressor.evaluation.original import BATCH
from worker.compressor.evaluation.tally import Tally
from worker.compressor.finishing import documents, finish, finish_study
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.network import Network
from worker.compressor.graph.residuals import Residuals
from worker.compressor.graph.shortening import shorten
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job, Proven, Shapes, open_job
from worker.compressor.outcome import Outcome
from worker.compressor.report.counts import totals
from worker.compressor.request import Request
from worker.compressor.schedule import Unit, expand
from worker.compressor.steps.imitation import imitate
from worker.compressor.steps.pruning import prune
from worker.compressor.steps.recovery import recover
from worker.compressor.steps.sensitivity import study
from worker.compressor.steps.synthesis import needs_synthesis, stand_in
from worker.compressor.steps.training import sparsify, train

# Rough shares of the work, for progress: an epoch against everything that takes seconds.
_WEIGHTS = {
    "preparing": 1.0,
    "synthesis": 20.0,
    "baseline": 4.0,
    "prune": 1.0,
    "recover": 5.0,
    "sensitivity": 20.0,
    "verify": 5.0,
    "latency": 3.0,
}
_EPOCH_WEIGHT = 15.0


def compress(request: Request, emit: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]) -> Outcome:
    """Do a job; the outcome is `succeeded`, or `failed` with what was made all the same.

    Raises:
        CompressorError: where nothing was made that could be kept.
        RunAborted: where `should_stop` said so.
    """
    assert request.spec is not None
    torch.set_num_threads(request.threads)
    torch.manual_seed(request.spec.seed)
    context = Context(request, emit, should_stop, plan(request.spec, has_data=request.dataset is not None))
    with context.stage("preparing"):
        job = open_job(context)
        if any(unit.kind not in ("prune", "sensitivity") for unit in expand(request.spec)):
            rehearse(job.network, job.formats, request.folder)
    if not job.has_data and needs_synthesis(request.spec):
        stand_in(job)
    with context.stage("baseline") as stage:
        _measure_original(job, stage)
    try:
        _do_steps(job)
    except (TargetUnreachable, NothingRemoved) as error:
        return _kept_failure(job, error)
    return finish(job) if request.spec.makes_network else finish_study(job)


def plan(spec: Spec, *, has_data: bool = True) -> list[tuple[str, float]]:
    """The stages of a job in order, each with its share of the work."""
    synthesis = () if has_data or not needs_synthesis(spec) else ("synthesis",)
    stages = [(name, _WEIGHTS[name]) for name in ("preparing", *synthesis, "baseline")]
    for unit in expand(spec):
        if isinstance(unit.options, Prune):
            stages += [(name, _WEIGHTS[name]) for name in _stages_of(unit)]
        elif isinstance(unit.options, Sensitivity):
            stages.append((unit.kind, _WEIGHTS[unit.kind]))
        else:
            stages.append((unit.kind, unit.options.epochs * _EPOCH_WEIGHT))
    proving = ("verify", "latency") if spec.makes_network else ()
    return [*stages, *((name, _WEIGHTS[name]) for name in proving)]


def _stages_of(unit: Unit) -> tuple[str, ...]:
    recovers = isinstance(unit.options, Prune) and unit.options.recovery != "none"
    return (unit.kind, "recover") if recovers else (unit.kind,)


def _measure_original(job: Job, stage: Stage) -> None:
    """The baseline's figures on the held-out rows, from onnxruntime; answers are kept for other jobs."""
    job.answers.learn(job.data.test, job.context.progress)
    job.answers.learn(job.data.val, lambda share: job.context.progress(1.0))
    tally = Tally(job.task)
    for at in range(0, len(job.data.test), BATCH):
        positions = slice(at, at + BATCH)
        output = job.answers.answers(job.data.test, positions)[0]
        tally.add(output, output, job.data.test.targets(positions))
    job.answers.save()
    if not job.has_data:
        made = "synthesised from the network's BatchNorm statistics" if job.is_synthetic else "random"
        job.context.warn(
            f"there is no data set, so the accuracy is not verified: all figures are on inputs that are {made}"
        )
    job.baseline = tally.figures()
    stage.metrics |= {**job.baseline, **totals(job.counts)}
    for name, value in job.baseline.items():
        if value is not None:
            job.context.metric(name, 0, value)


def _do_steps(job: Job) -> None:
    done = _resume(job)
    for number, unit in enumerate(expand(job.context.spec)):
        if number <= done:
            for _ in _stages_of(unit):
                job.context.skip()
            continue
        _do(job, number, unit)
        _save(job, number)


def _do(job: Job, number: int, unit: Unit) -> None:
    if isinstance(unit.options, Prune):
        try:
            prune(job, number, unit.options)
        except NothingRemoved:
            first = number - unit.num_before
            if not unit.is_on_the_way and not any(first <= cut < number for cut in job.proven.removed_in):
                raise  # else an earlier cut of the step, rounded down, met the target already
            for _ in _stages_of(unit)[1:]:
                job.context.skip()
            return
        if unit.options.recovery != "none":
            recover(job, number, unit.options)
    elif isinstance(unit.options, Sensitivity):
        study(job, number, unit.options)
    elif unit.is_on_the_way and not job.has_data:
        job.context.skip()
        job.context.warn("there is no data set, so nothing was trained between the cuts")
    elif unit.imitating:
        imitate(job, number, unit.imitating)
    elif unit.sparsifying:
        sparsify(job, number, unit.options, unit.sparsifying)
    else:
        train(job, number, unit.options)


def _save(job: Job, step: int) -> None:
    context = job.context
    state = {
        "proven": asdict(job.proven),
        "studies": job.studies,
        "warnings": context.warnings,
        "stages": [asdict(s) for s in context.stages],
    }
    job.checkpoints.save(step, job.network, state)
    if job.network is not job.original:
        job.checkpoints.keep_best(job.network)


def _resume(job: Job) -> int:
    """Bring the network to where an earlier attempt left it; the last step that is done, -1 for none."""
    state = job.checkpoints.load()
    if state is None:
        return -1
    job.proven, job.studies = Proven(**state["proven"]), state.get("studies", [])
    network = job.original
    for made in job.proven.cuts:
        network = _cut_again(network, job.shapes, made)
    network = network.copy()
    job.checkpoints.restore(state, network)
    job.network = network
    job.context.stages = [Stage(**stage) for stage in state["stages"]]
    for warning in state["warnings"]:
        job.context.warn(warning)
    return int(state["step"])


def _cut_again(network: Network, shapes: Shapes, made: dict[str, Any]) -> Network:
    """What a cut (see `Proven`) made of the network."""
    if "skips" in made:
        branches = Residuals(network, shapes).branches
        return shorten(network, [branch for branch in branches if branch.add in made["skips"]])
    kept = {int(group): np.asarray(units, np.int64) for group, units in made["units"].items()}
    return cut(network, analyse(network, shapes), kept).network


def _kept_failure(job: Job, error: CompressorError) -> Outcome:
    """A job that could not be cut as asked still leaves its report."""
    artifacts = documents(job, [], count(job.network, job.shapes), None)
    return Outcome("failed", error.as_dict(), job.context.warnings, None, None, artifacts)
