"""One compression from request to outcome: prepare, measure the original, do the steps, prove the result.

Each step is checkpointed, and a later attempt goes on after the last one that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from app.spec.schema import Spec
from worker.compressor import steps
from worker.compressor.context import Context, Stage
from worker.compressor.delivery import rehearse
from worker.compressor.errors import CompressorError, NothingRemoved, TargetUnreachable
from worker.compressor.evaluation.original import BATCH
from worker.compressor.evaluation.tally import Tally
from worker.compressor.finishing import documents, finish
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.counts import count
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job, Proven, open_job
from worker.compressor.outcome import Outcome
from worker.compressor.report.counts import totals
from worker.compressor.request import Request

# Rough shares of the work, for progress: an epoch against everything that takes seconds.
_WEIGHTS = {"preparing": 1.0, "baseline": 4.0, "prune": 1.0, "recover": 5.0, "verify": 5.0, "latency": 3.0}
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
    context = Context(request, emit, should_stop, plan(request.spec))
    with context.stage("preparing"):
        job = open_job(context)
        if any(step.distill or step.finetune for step in request.spec.steps):
            rehearse(job.network, job.formats, request.folder)
    with context.stage("baseline") as stage:
        _measure_original(job, stage)
    try:
        _do_steps(job)
    except (TargetUnreachable, NothingRemoved) as error:
        return _kept_failure(job, error)
    return finish(job)


def plan(spec: Spec) -> list[tuple[str, float]]:
    """The stages of a job in order, each with its share of the work."""
    stages = ["preparing", "baseline"]
    weights = []
    for step in spec.steps:
        stages.append(step.kind)
        if step.prune and step.prune.recovery != "none":
            stages.append("recover")
        training = step.distill or step.finetune
        weights += [training.epochs * _EPOCH_WEIGHT] if training else []
    trained = iter(weights)
    return [(name, _WEIGHTS[name] if name in _WEIGHTS else next(trained)) for name in (*stages, "verify", "latency")]


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
        job.context.warn("there is no data set: agreement, error and timing are on random inputs")
    job.baseline = tally.figures()
    stage.metrics |= {**job.baseline, **totals(job.counts)}
    for name, value in job.baseline.items():
        if value is not None:
            job.context.metric(name, 0, value)


def _do_steps(job: Job) -> None:
    done = _resume(job)
    for number, step in enumerate(job.context.spec.steps):
        if number <= done:
            job.context.skip()
            if step.prune and step.prune.recovery != "none":
                job.context.skip()
            continue
        if step.prune:
            steps.prune(job, number, step.prune)
            if step.prune.recovery != "none":
                steps.recover(job, number, step.prune)
        elif training := step.distill or step.finetune:
            steps.train(job, number, training)
        _save(job, number)


def _save(job: Job, step: int) -> None:
    context = job.context
    state = {"proven": asdict(job.proven), "warnings": context.warnings, "stages": [asdict(s) for s in context.stages]}
    job.checkpoints.save(step, job.network, state)
    job.checkpoints.keep_best(job.network)


def _resume(job: Job) -> int:
    """Bring the network to where an earlier attempt left it; the last step that is done, -1 for none."""
    state = job.checkpoints.load()
    if state is None:
        return -1
    job.proven = Proven(**state["proven"])
    network = job.original
    for kept in job.proven.kept:
        analysis = analyse(network, job.shapes)
        network = cut(network, analysis, {int(group): units for group, units in _arrays(kept).items()}).network
    network = network.copy()
    job.checkpoints.restore(state, network)
    job.network = network
    job.context.stages = [Stage(**stage) for stage in state["stages"]]
    for warning in state["warnings"]:
        job.context.warn(warning)
    return int(state["step"])


def _arrays(kept: dict[str, list[int]]) -> dict[str, Any]:
    import numpy as np

    return {group: np.asarray(units, np.int64) for group, units in kept.items()}


def _kept_failure(job: Job, error: CompressorError) -> Outcome:
    """A job that could not be cut as asked still leaves its report."""
    artifacts = documents(job, [], count(job.network, job.shapes), None)
    return Outcome("failed", error.as_dict(), job.context.warnings, None, None, artifacts)
