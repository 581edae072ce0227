"""The steps of a spec: prune (and recover), distill, finetune. Each takes the job's network and leaves a better one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.fx import GraphModule

from app.spec.schema import Distill, Finetune, Prune, Recovery
from worker.compressor.context import Stage
from worker.compressor.distillation.objective import Objective, OutputKind, output_kind
from worker.compressor.distillation.students import STUDENTS
from worker.compressor.distillation.trainer import Hooks, Plan, Trained, Trainer
from worker.compressor.errors import GraphError
from worker.compressor.evaluation.footprint import affordable
from worker.compressor.graph.channels.grouping import Group
from worker.compressor.graph.counts import count
from worker.compressor.graph.network import Network
from worker.compressor.graph.precision import in_float32
from worker.compressor.graph.proof import Proof, prove
from worker.compressor.graph.surgery import Cut, cut
from worker.compressor.graph.training.batch import fixed_batch, has_free_batch
from worker.compressor.graph.training.batchnorm import fold_batchnorm, insert_batchnorm, with_biases
from worker.compressor.graph.training.executor import parameter_tensors, to_module, write_back
from worker.compressor.job import Feeds, Job, taken_back
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.evidence import Evidence, Samples
from worker.compressor.pruning.matrices import LEFT_OUT
from worker.compressor.pruning.reconstruction.lockstep import reconstruct
from worker.compressor.pruning.structures import Choice, Masking, Narrowing, structure_of
from worker.compressor.report.counts import layer_rows, pins

PROOF_SAMPLES = 16
KIND_SAMPLES = 256
_FEWEST = 4
_DEAR = 0.2  # share of the MACs from which on a reason to keep layers is worth a warning
# Streams of the job's randomness beside those of the steps.
_PROOF, _RECOVERY, _EVIDENCE, _STATISTICS = 50, 60, 100, 80
TEACHER_SHARE = 0.1


def prune(job: Job, step: int, options: Prune) -> None:
    """Remove what the structure says until the targets are met.

    Raises:
        TargetUnreachable, NothingRemoved, DataNeeded: see `Narrowing.choose`.
        GraphError: where the cut network does not compute what the masked one does.
    """
    structure = structure_of(options)(
        job.network, job.shapes, options, lambda groups: _evidence(job, step, options, groups)
    )
    with job.context.stage("prune") as stage:
        if isinstance(structure, Narrowing):
            _narrow(job, step, options, structure, stage)
        elif isinstance(structure, Masking):
            _mask(job, step, options, structure, stage)
        job.proven.removed_in.append(step)


def _narrow(job: Job, step: int, options: Prune, structure: Narrowing, stage: Stage) -> None:
    """Cut to the targets, and prove the cut."""
    context = job.context
    assert options.target is not None
    whole = {"macs": job.counts.macs, "params": job.counts.num_params}
    given = {"macs": options.target.macs, "params": options.target.params}
    ceilings = {name: target.resolve(whole[name]) for name, target in given.items() if target is not None}
    choice, made, proof = _proven_cut(job, step, structure, ceilings)
    if made.inexact:
        context.warn(_told_inexact(made))
    if proof.vacuous:
        context.warn("the proof of the cut says nothing: the removed channels do not matter on these samples")
    before, job.network = job.network, made.network
    job.proven.kept.append({str(group): units.tolist() for group, units in choice.kept.items()})
    job.proven.kept_because.update(choice.kept_because)
    for pin in pins(layer_rows(job.counts, job.counts, choice.kept_because)):
        if pin["share"] >= _DEAR and pin["why"] != LEFT_OUT:
            context.warn(f"{pin['share']:.0%} of the MACs were not up for removal: {pin['why']}")
    sources = {name: origin.source for name, origin in before.origins.items()}
    job.proven.inexact += [
        row | {"weights": sorted({sources.get(name, name) for name in row["weights"]})} for row in made.inexact
    ]
    stage.metrics |= {"proof_error": proof.error, "proof_control": proof.control, "vacuous": proof.vacuous}
    context.metric("proof_error", step, proof.error)


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


def _proven_cut(job: Job, step: int, structure: Narrowing, ceilings: dict[str, int]) -> tuple[Choice, Cut, Proof]:
    """A cut that meets the ceilings and passes the proof; groups that fail it stay whole, and others make up for them.

    The proof is about the exact groups; what a normalisation over the cut axis makes of the others is for the recovery.
    """
    rows = fixed_batch(job.network) or 1
    feeds = job.feeds(job.data.val, _affordable(job, PROOF_SAMPLES, 3) if has_free_batch(job.network) else rows, _PROOF)
    refused: dict[int, str] = {}
    while True:
        rng = job.context.rng(step)
        choice = structure.choose(ceilings, rng, refused)
        exact = {group: units for group, units in choice.kept.items() if choice.analysis.groups[group].exact}
        try:
            proof = _proven(job, choice, exact, feeds)
            return choice, cut(job.network, choice.analysis, choice.kept), proof
        except GraphError as error:
            failing = _failing(job, choice, feeds)
            if not failing:
                raise
            refused |= dict.fromkeys(failing, "the cut network would not compute what the original does without it")
            for group in failing:
                layers = ", ".join(choice.analysis.groups[group].layers[:4])
                job.context.warn(
                    f"the channels of {layers} stay whole, because cutting them failed its proof: {error.detail}"
                )


def _evidence(job: Job, step: int, options: Prune, groups: Sequence[Group]) -> Evidence:
    """What the criterion may look at: rows of the training split, where it asks for any."""
    if not job.has_data or not CRITERIA.get(options.criterion).needs:
        return Evidence(job.network, groups, options.combine)
    view, fixed = job.view(job.network), fixed_batch(job.network)
    wanted = options.recovery.samples if options.recovery != "none" else Recovery().samples
    rows = job.data.train.sample(wanted, job.context.rng(_EVIDENCE + step))
    names = [port.name for port in job.original.inputs]
    samples = Samples(
        dict(zip(names, rows.feeds(slice(None)), strict=True)),
        rows.targets(),
        job.task,
        _kinds(job),
        _affordable(job, wanted, 1) if view is not None or fixed is None else fixed,
        job.context.spec.seed,
    )
    return Evidence(job.network, groups, options.combine, view or in_float32(job.network), samples)


def _proven(job: Job, choice: Choice, kept: dict[int, np.ndarray], feeds: Feeds) -> Proof:
    """The proof of a cut, in float32 whatever the network computes in: half precision would hide small mistakes."""
    made = cut(job.network, choice.analysis, kept)
    wide = replace(made, network=in_float32(made.network))
    return prove(in_float32(job.network), wide, choice.analysis, feeds)


def _failing(job: Job, choice: Choice, feeds: Feeds) -> list[int]:
    """The groups that cannot be cut by themselves; else the first that cannot be cut with those before it."""
    alone = [group for group in choice.kept if not _holds(job, choice, [group], feeds)]
    if alone:
        return alone
    groups = list(choice.kept)
    return next(([groups[n]] for n in range(1, len(groups)) if not _holds(job, choice, groups[: n + 1], feeds)), [])


def _holds(job: Job, choice: Choice, groups: Sequence[int], feeds: Feeds) -> bool:
    """Whether these groups can be cut together, and the exact ones pass the proof."""
    kept = {group: choice.kept[group] for group in groups}
    exact = {group: units for group, units in kept.items() if choice.analysis.groups[group].exact}
    try:
        cut(job.network, choice.analysis, kept)
        if exact:
            _proven(job, choice, exact, feeds)
    except GraphError:
        return False
    return True


def _told_inexact(made: Cut) -> str:
    reasons = list(dict.fromkeys(row["why"] for row in made.inexact))
    more = f", and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
    return f"a part of the cut cannot be exact and relies on the recovery: {'; '.join(reasons[:2])}{more}"


def recover(job: Job, step: int, options: Prune) -> None:
    """Refit and re-estimate on unlabelled samples, kept only where it makes the network better."""
    context = job.context
    with context.stage("recover") as stage:
        recovery = options.recovery
        assert recovery != "none"
        original, network = job.view(job.original), job.view(job.network)
        if not job.has_data:
            context.warn("there is no data set, so the cut network was not repaired: recovery needs samples")
            return
        if original is None or network is None:
            context.warn(
                "the file fixes the number of samples and cannot be freed from it, so the cut network was not repaired"
            )
            return
        feeds = job.feeds(job.data.train, _affordable(job, recovery.samples, 2), _RECOVERY + step)
        fitted, repair = reconstruct(
            original,
            network,
            feeds,
            refit=recovery.refit,
            batchnorm=recovery.batchnorm,
            masked=frozenset(job.proven.masked),
            progress=context.progress,
        )
        mended, judge = taken_back(job.network, fitted), job.judge()
        before, after = judge(job.runner(job.network)), judge(job.runner(mended))
        stage.metrics |= {"samples": len(next(iter(feeds.values())))}
        stage.metrics |= {"refitted": len(repair.refitted), "measured": len(repair.measured)}
        stage.metrics |= {"before": before.as_dict(), "after": after.as_dict()}
        context.metric(after.name, step, abs(after.value))
        if after > before:
            job.network = mended
        else:
            context.warn("recovery did not make the cut network better on the validation rows, so it stayed as cut")


def train(job: Job, step: int, options: Distill | Finetune, max_steps: int | None = None) -> None:
    """Distill from the original, or fine-tune on labels; the network is never worse for it.

    `max_steps`: so many steps of the optimiser, whatever `options.epochs` says.
    """
    context, name = job.context, options.__class__.__name__.lower()
    with context.stage(name) as stage:
        start = job.network.copy()
        if isinstance(options, Distill):
            start = STUDENTS.get(options.student)().build(job.network, job.original)
            job.answers.learn(job.data.train, lambda share: context.progress(TEACHER_SHARE * share))
            job.answers.save()
        if options.batch_size > len(job.data.train):
            rows = len(job.data.train)
            context.warn(f"batch_size {options.batch_size} is more than the {rows} training rows, and was clipped")
        modes = {"auto": (False, True), "keep": (False,), "insert": (True,)}[options.normalisation]
        if job.view(start) is None:
            context.warn(_told_fixed(start))
        if job.view(start) is None or not _has_room_for_batchnorm(start):
            modes = (False,)
        for insert in modes:
            trained, made = _train_once(job, step, options, start, insert, max_steps)
            if trained.diverged is None:
                break
            how = "with" if insert else "without"
            context.warn(f"training {how} added normalisation was given up: {trained.diverged}")
        stage.metrics |= _told(trained)
        if trained.best_epoch > 0:
            job.network = made
        else:
            context.warn(f"{name} did not make the network better on the validation rows, so it stayed as it was")


def _train_once(
    job: Job, step: int, options: Distill | Finetune, start: Network, insert: bool, max_steps: int | None
) -> tuple[Trained, Network]:
    """Train a copy of `start`; `insert` puts BatchNorm in where there is none and folds it back at the end."""
    start = with_biases(start) if insert else start
    context, freed = job.context, job.view(start)
    view = in_float32(start) if freed is None else freed
    if insert:
        view = insert_batchnorm(view, job.feeds(job.data.train, _affordable(job, KIND_SAMPLES, 1), _STATISTICS))
    module = to_module(view)
    zeros = {name for name, tensors in parameter_tensors(module).items() if set(tensors) & set(job.proven.masked)}

    def taken(source: GraphModule) -> Network:
        result = view.copy()
        write_back(result, source)
        return taken_back(start, fold_batchnorm(result) if insert else result)

    trainer = Trainer(
        module,
        job.data.train,
        job.answers,
        _objective(job, options),
        job.judge(),
        Plan(
            options.epochs,
            options.batch_size,
            options.optimizer,
            context.spec.seed,
            step,
            None if freed is not None else fixed_batch(start),
            max_steps,
        ),
        Hooks(
            lambda share: context.progress(TEACHER_SHARE + (1 - TEACHER_SHARE) * share),
            context.metric,
            lambda improved: job.checkpoints.keep_best(taken(improved)),
            context.check,
        ),
        context.device,
        frozenset(zeros),
    )
    trained = trainer.train(job.checkpoints.training(step, insert))
    return trained, taken(module)


def _told_fixed(network: Network) -> str:
    size = fixed_batch(network)
    return (
        f"the file takes {size} sample{'' if size == 1 else 's'} at a time and cannot be freed from it, so it was "
        "trained that way, which is slower: export it with a free batch axis"
    )


def _has_room_for_batchnorm(network: Network) -> bool:
    """Whether there are convolutions, and no BatchNorm: exports fold all of them away or none."""
    operators = {node.op for node in network.nodes}
    return "Conv" in operators and "BatchNormalization" not in operators


def _objective(job: Job, options: Distill | Finetune) -> Objective:
    loss = options.loss if isinstance(options, Distill) else None
    return Objective(loss, job.task, _kinds(job))


def _kinds(job: Job) -> tuple[OutputKind | None, ...]:
    """What the numbers of each output are, read off the original's answers."""
    rows = job.data.train.sample(KIND_SAMPLES, np.random.default_rng(job.context.spec.seed))
    return tuple(output_kind(answer, job.task) for answer in job.answers.answers(rows, slice(None)))


def _affordable(job: Job, samples: int, num_networks: int) -> int:
    """As many samples as so many networks side by side have room for in a gigabyte, but a few in any case."""
    return min(samples, max(_FEWEST, affordable(job.original, job.shapes, (1 << 30) // num_networks)))


def _told(trained: Trained) -> dict[str, Any]:
    return {
        "start": trained.start.as_dict(),
        "best": trained.best.as_dict(),
        "best_epoch": trained.best_epoch,
        "losses": trained.losses,
        "precision": trained.precision,
    }
