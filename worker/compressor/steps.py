"""The steps of a spec: prune (and recover), distill, finetune. Each takes the job's network and leaves a better one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from app.spec.schema import Distill, Finetune, Prune
from worker.compressor.distillation.objective import Objective, output_kind
from worker.compressor.distillation.students import STUDENTS
from worker.compressor.distillation.trainer import Hooks, Plan, Trained, Trainer
from worker.compressor.evaluation.judge import Score, module_runner
from worker.compressor.graph.batchnorm import fold_batchnorm, insert_batchnorm
from worker.compressor.graph.executor import to_module, write_back
from worker.compressor.graph.network import Network
from worker.compressor.graph.proof import prove
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job
from worker.compressor.pruning.reconstruction.lockstep import reconstruct
from worker.compressor.pruning.structures import STRUCTURES

PROOF_SAMPLES = 16
KIND_SAMPLES = 256


def prune(job: Job, step: int, options: Prune) -> None:
    """Cut to the targets, and prove the cut.

    Raises:
        TargetUnreachable, NothingRemoved: see `Structure.choose`.
        GraphError: where the cut network does not compute what the masked one does.
    """
    context = job.context
    with context.stage("prune") as stage:
        whole = {"macs": job.counts.macs, "params": job.counts.num_params}
        given = {"macs": options.target.macs, "params": options.target.params}
        ceilings = {name: target.resolve(whole[name]) for name, target in given.items() if target is not None}
        structure = STRUCTURES.get(options.structure)()
        choice = structure.choose(job.network, job.shapes, options, ceilings, context.rng(step))
        context.progress(0.4)
        made = cut(job.network, choice.analysis, choice.kept)
        proof = prove(job.network, made, choice.analysis, job.feeds(job.data.val, PROOF_SAMPLES, 50))
        if proof.vacuous:
            context.warn("the proof of the cut says nothing: the removed channels do not matter on these samples")
        job.network = made.network
        job.proven.kept.append({str(group): units.tolist() for group, units in choice.kept.items()})
        job.proven.kept_because.update(choice.kept_because)
        job.proven.inexact += made.inexact
        job.proven.errors.append(float(proof.error))
        stage.metrics |= {
            "proof_error": float(proof.error),
            "proof_control": float(proof.control),
            "vacuous": proof.vacuous,
        }
        context.metric("proof_error", step, float(proof.error))


def recover(job: Job, step: int, options: Prune) -> None:
    """Refit and re-estimate on unlabelled samples, kept only where it makes the network better."""
    context = job.context
    with context.stage("recover") as stage:
        recovery = options.recovery
        assert recovery != "none"
        if not job.has_data:
            context.warn("there is no data set, so the cut network was not repaired: recovery needs samples")
            return
        feeds = job.feeds(job.data.train, _affordable(job, recovery.samples), 60 + step)
        mended, repair = reconstruct(
            job.original,
            job.network,
            feeds,
            refit=recovery.refit,
            batchnorm=recovery.batchnorm,
            progress=context.progress,
        )
        judge = job.judge()
        before, after = (
            judge(module_runner(_frozen(job, network), context.device)) for network in (job.network, mended)
        )
        stage.metrics |= {
            "samples": len(next(iter(feeds.values()))), "refitted": len(repair.refitted), "measured": len(repair.measured),
            "before": before.as_dict(), "after": after.as_dict(),
        }  # fmt: skip
        context.metric(after.name, step, abs(after.value))
        if after > before:
            job.network = mended
        else:
            context.warn(
                "recovery did not make the cut network better on the validation rows, so its weights stayed as cut"
            )


def train(job: Job, step: int, options: Distill | Finetune) -> None:
    """Distill from the original, or fine-tune on labels; the network is never worse for it."""
    context = job.context
    name = "distill" if isinstance(options, Distill) else "finetune"
    with context.stage(name) as stage:
        network = (
            STUDENTS.get(options.student)().build(job.network, job.original)
            if isinstance(options, Distill)
            else job.network.copy()
        )
        if options.batch_size > len(job.data.train):
            context.warn(
                f"batch_size {options.batch_size} is more than the {len(job.data.train)} training rows, and was clipped"
            )
        if isinstance(options, Distill):
            job.answers.learn(job.data.train, lambda share: context.progress(0.1 * share))
        modes = {"auto": [False, True], "keep": [False], "insert": [True]}[options.normalisation]
        for with_batchnorm in modes:
            trained, made = _train_once(job, step, options, network, with_batchnorm)
            if trained.diverged is None:
                break
            context.warn(
                f"training {'with' if with_batchnorm else 'without'} normalisation was given up: {trained.diverged}"
            )
        stage.metrics |= _told(trained)
        if trained.best_epoch > 0:
            job.network = made
        else:
            context.warn(f"{name} did not make the network better on the validation rows, so it stayed as it was")


def _train_once(
    job: Job, step: int, options: Distill | Finetune, start: Network, insert: bool
) -> tuple[Trained, Network]:
    context, network = job.context, start.copy()
    inserted = insert and not any(node.op == "BatchNormalization" for node in network.nodes)
    if inserted:
        network = insert_batchnorm(network, job.feeds(job.data.train, KIND_SAMPLES, 70))
    module = to_module(network)

    def taken(source: torch.nn.Module) -> Network:
        result = network.copy()
        write_back(result, source)  # type: ignore[arg-type]
        return fold_batchnorm(result) if inserted else result

    trainer = Trainer(
        module,
        job.data.train,
        job.answers,
        _objective(job, options),
        job.judge(),
        Plan(options.epochs, options.batch_size, options.optimizer, context.spec.seed, step),
        Hooks(
            lambda share: context.progress(0.1 + 0.9 * share),
            context.metric,
            lambda m: job.checkpoints.keep_best(taken(m)),
            context.check,
        ),
        context.device,
    )
    trained = trainer.train(None if inserted else job.checkpoints.training(step))
    return trained, taken(module)


def _objective(job: Job, options: Distill | Finetune) -> Objective:
    loss = options.loss if isinstance(options, Distill) else None
    rows = job.data.train.sample(KIND_SAMPLES, np.random.default_rng(job.context.spec.seed))
    answers = job.answers.answers(rows, slice(None))
    task: Any = job.task
    return Objective(loss, task, tuple(output_kind(answer, task) for answer in answers))


def _affordable(job: Job, samples: int) -> int:
    """As many samples as two networks' widest activations leave room for in a gigabyte."""
    from worker.compressor.graph.evaluation import observe

    shapes = observe(job.original, job.shapes).shapes
    widest = max(int(np.prod(shapes[name])) for node in job.original.nodes for name in node.outputs if name in shapes)
    return max(16, min(samples, (1 << 30) // (widest * 4 * 8)))


def _frozen(job: Job, network: Network) -> torch.nn.Module:
    return to_module(network, trainable=False).eval().to(job.context.device)


def _told(trained: Trained) -> dict[str, Any]:
    def score(one: Score) -> dict[str, float]:
        return one.as_dict()

    return {
        "start": score(trained.start),
        "best": score(trained.best),
        "best_epoch": trained.best_epoch,
        "losses": trained.losses,
    }
