"""A short distillation without labels from a refitted start: the original is imitated inside as well as at its outputs."""

from __future__ import annotations

from torch.fx import GraphModule

from app.spec.schema import Loss, Optimizer
from worker.compressor.distillation.features import Imitation, features
from worker.compressor.distillation.lessons import MixedRows
from worker.compressor.distillation.objective import Objective
from worker.compressor.distillation.trainer import Hooks, Plan, Trainer, fast_layout
from worker.compressor.graph.network import Network
from worker.compressor.graph.training.executor import to_module, write_back
from worker.compressor.job import Job, taken_back
from worker.compressor.steps.samples import affordable_rows, output_kinds
from worker.compressor.steps.training import attributes, told

#: Many steps on few rows get nearer than few steps on many (ADR 16).
BATCH, RATE = 64, 2e-3


def imitate(job: Job, step: int, num_steps: int) -> None:
    """Train for so many steps of the optimiser; the network is never worse for it on the validation rows.

    BatchNorm keeps its statistics, which the refit has measured on rows as they are, not mixed.
    """
    context = job.context
    with context.stage("distill") as stage:
        original, student = job.view(job.original), job.view(job.network)
        if original is None or student is None:
            context.warn("the file fixes the number of samples and cannot be freed from it, so nothing was distilled")
            return
        compared = features(original, student)
        names = [feature.name for feature in compared]
        teacher = fast_layout(to_module(original, trainable=False, also=names), context.device).eval()
        module = to_module(student, also=names)

        def taken(trained: GraphModule) -> Network:
            result = student.copy()
            write_back(result, trained)
            return taken_back(job.network, result)

        plan = Plan(
            1,
            affordable_rows(job, BATCH, 4),
            Optimizer(lr=RATE),
            context.spec.seed,
            step,
            max_steps=num_steps,
            keep_last=True,
            keep_statistics=True,
        )
        trainer = Trainer(
            module,
            MixedRows(job.data.train, context.device, teacher),
            Imitation(Objective(Loss(hard=0.0, soft=1.0), job.task, output_kinds(job)), compared),
            job.judge(),
            plan,
            Hooks(
                context.progress,
                context.metric,
                lambda improved: job.checkpoints.keep_best(taken(improved)),
                context.check,
            ),
            context.device,
            attributes(module, job.proven.masked),
            attributes(module, job.untouched),
        )
        trained = trainer.train(job.checkpoints.training(step, False))
        stage.metrics |= told(trained) | {"features": len(compared)}
        # Of few rows the share that is right says little: the likelihood, or the distance from the original, says more.
        if trained.diverged is None and trained.best.tie_break > trained.start.tie_break:
            job.network = taken(module)
        else:
            context.warn("distillation did not bring the cut network nearer to the original, so it stayed as it was")
