"""Training: distillation, fine-tuning, and what makes a network sparse before it is cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import GraphModule

from app.spec.schema import Distill, Finetune, SparsityTraining
from worker.compressor.context import Stage
from worker.compressor.distillation.lessons import AnsweredRows
from worker.compressor.distillation.objective import Objective
from worker.compressor.distillation.students import STUDENTS
from worker.compressor.distillation.trainer import Hooks, Plan, Trained, Trainer
from worker.compressor.errors import PruningError
from worker.compressor.graph.channels.analysis import Group, analyse
from worker.compressor.graph.network import Network
from worker.compressor.graph.precision import in_float32
from worker.compressor.graph.training.batch import fixed_batch
from worker.compressor.graph.training.batchnorm import fold_batchnorm, insert_batchnorm, with_biases
from worker.compressor.graph.training.executor import TENSORS, to_module, write_back
from worker.compressor.job import Job, taken_back
from worker.compressor.pruning.combining import unit_sums
from worker.compressor.pruning.penalties import PENALTIES, Trainee
from worker.compressor.steps.samples import KIND_SAMPLES, STATISTICS, affordable_rows, output_kinds

TEACHER_SHARE = 0.1


def train(job: Job, step: int, options: Distill | Finetune) -> None:
    """Distill from the original, or fine-tune on labels; the network is never worse for it."""
    context, name = job.context, options.__class__.__name__.lower()
    with context.stage(name) as stage:
        start = _start(job, options)
        modes = {"auto": (False, True), "keep": (False,), "insert": (True,)}[options.normalisation]
        if job.view(start) is None or not _has_room_for_batchnorm(start):
            modes = (False,)
        for insert in modes:
            trained, made = _Run(job, step, options, start, insert=insert).train()
            if trained.diverged is None:
                break
            how = "with" if insert else "without"
            context.warn(f"training {how} added normalisation was given up: {trained.diverged}")
        stage.metrics |= told(trained)
        if trained.best_epoch > 0:
            job.network = made
        else:
            context.warn(f"{name} did not make the network better on the validation rows, so it stayed as it was")


def sparsify(job: Job, step: int, options: Distill | Finetune, sparsity: SparsityTraining) -> None:
    """Train with a penalty that makes weights small which matter little, and keep what comes out at the end.

    Raises:
        PruningError: `batchnorm_needed` where the penalty is on BatchNorm, and there is no place for one.
    """
    context, penalty = job.context, PENALTIES.get(sparsity.penalty)()
    with context.stage("sparsify") as stage:
        start = _start(job, options)
        insert = penalty.needs_batchnorm and _has_room_for_batchnorm(start) and job.view(start) is not None
        if penalty.needs_batchnorm and not insert and not any(n.op == "BatchNormalization" for n in start.nodes):
            raise PruningError(
                f"the penalty {sparsity.penalty} is on BatchNorm, and the network has no place for one",
                code="batchnorm_needed",
                hint="Choose the penalty l1 or group_lasso.",
            )
        groups = analyse(start, job.shapes).groups
        _histogram(job, stage, "before", start, groups)

        def penalised(module: GraphModule, view: Network) -> Callable[[], Tensor]:
            value = penalty.of(Trainee(module, view, analyse(view, job.shapes).groups))
            return lambda: sparsity.strength * value()

        trained, made = _Run(job, step, options, start, insert=insert, penalised=penalised).train()
        stage.metrics |= told(trained)
        if trained.diverged is not None:
            context.warn(f"sparsity training was given up: {trained.diverged}")
            return
        job.network = made
        _histogram(job, stage, "after", made, groups)


def _start(job: Job, options: Distill | Finetune) -> Network:
    """What training starts from; what it needs of the teacher is computed, what it cannot have is said."""
    context, start = job.context, job.network.copy()
    if isinstance(options, Distill):
        start = STUDENTS.get(options.student)().build(job.network, job.original)
        job.answers.learn(job.data.train, lambda share: context.progress(TEACHER_SHARE * share))
        job.answers.save()
    if options.batch_size > len(job.data.train):
        rows = len(job.data.train)
        context.warn(f"batch_size {options.batch_size} is more than the {rows} training rows, and was clipped")
    if job.view(start) is None:
        context.warn(_told_fixed(start))
    return start


class _Run:
    """The training of a copy of `start`. `insert` puts BatchNorm in where there is none and folds it back at the end;
    `penalised` gives what is added to the loss, and then the last epoch counts, not the best one.
    """

    def __init__(
        self,
        job: Job,
        step: int,
        options: Distill | Finetune,
        start: Network,
        *,
        insert: bool,
        penalised: Callable[[GraphModule, Network], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._job, self._step, self._options, self._insert = job, step, options, insert
        self._start = with_biases(start, job.untouched) if insert else start
        freed = job.view(self._start)
        view = in_float32(self._start) if freed is None else freed
        if insert:
            rows = affordable_rows(job, KIND_SAMPLES, 1)
            view = insert_batchnorm(view, job.feeds(job.data.train, rows, STATISTICS), job.untouched)
        self._view, self._module = view, to_module(view)
        self._plan = Plan(
            options.epochs,
            options.batch_size,
            options.optimizer,
            job.context.spec.seed,
            step,
            None if freed is not None else fixed_batch(self._start),
            keep_last=penalised is not None,
            is_lenient=job.data.is_val_learnt and job.data.val.labels is not None,
        )
        self._penalty = penalised(self._module, view) if penalised else None

    def train(self) -> tuple[Trained, Network]:
        """How it went, and the network in the end."""
        job, context = self._job, self._job.context
        objective = Objective(_loss_of(self._options), job.task, output_kinds(job))
        trainer = Trainer(
            self._module,
            AnsweredRows(job.data.train, context.device, job.answers if objective.needs_teacher else None),
            objective,
            job.judge(),
            self._plan,
            Hooks(
                lambda share: context.progress(TEACHER_SHARE + (1 - TEACHER_SHARE) * share),
                context.metric,
                lambda improved: job.checkpoints.keep_best(self._taken(improved)),
                context.check,
            ),
            context.device,
            attributes(self._module, job.proven.masked),
            attributes(self._module, job.untouched),
            self._penalty,
        )
        trained = trainer.train(job.checkpoints.training(self._step, self._insert))
        return trained, self._taken(self._module)

    def _taken(self, module: GraphModule) -> Network:
        result = self._view.copy()
        write_back(result, module)
        return taken_back(self._start, fold_batchnorm(result) if self._insert else result)


def attributes(module: GraphModule, tensors: Collection[str]) -> frozenset[str]:
    """The parameters and buffers of the module that hold one of these tensors."""
    return frozenset(name for name, held in module.meta[TENSORS].items() if not set(held).isdisjoint(tensors))


def _loss_of(options: Distill | Finetune) -> Any:
    return options.loss if isinstance(options, Distill) else None


def _histogram(job: Job, stage: Stage, when: str, network: Network, groups: Sequence[Group]) -> None:
    """The norms of all units' weights, those that make and those that read them, as a histogram of 20 equal bins up to the
    largest before, and as quantiles among the metrics (`norm_p50`: step 0 before, 1 after).
    """
    squares = {name: np.square(array.astype(np.float64)) for name, array in network.tensors.items() if array.ndim > 1}
    values = np.sqrt(np.concatenate([np.zeros(0), *(unit_sums(group, squares, "all") for group in groups)]))
    if not len(values):
        return
    norms = stage.metrics.setdefault("norms", {})
    top = norms["before"]["edges"][-1] if norms else float(values.max())
    counts, edges = np.histogram(values.clip(max=top), bins=20, range=(0.0, top))
    norms[when] = {"edges": edges.tolist(), "counts": counts.tolist()}
    for share in (10, 50, 90):
        job.context.metric(f"norm_p{share}", int(when == "after"), float(np.percentile(values, share)))


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


def told(trained: Trained) -> dict[str, Any]:
    """How a training went, for the report."""
    return {
        "start": trained.start.as_dict(),
        "best": trained.best.as_dict(),
        "best_epoch": trained.best_epoch,
        "losses": trained.losses,
        "precision": trained.precision,
    }
