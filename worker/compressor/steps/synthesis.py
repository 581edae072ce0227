"""Inputs for a job that has no data: made up from the network's BatchNorm statistics, where it carries any."""

from __future__ import annotations

import math

from app.spec.schema import Spec
from worker.compressor.data.synthesis.inputs import Effort, can_synthesise, synthesise
from worker.compressor.data.synthetic import keep_synthetic, synthetic_dataset
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network
from worker.compressor.job import Job, Shapes

MOST_ROWS, FEWEST_ROWS = 160, 40
MOST_STEPS, FEWEST_STEPS = 60, 20
#: Multiply-accumulates that the search may take: about a minute on two cores. Large networks get fewer rows and steps.
MOST_MACS = 3e12
#: What the values of a batch may take; the search holds all of them, and their gradients.
MOST_BYTES = 2 << 30


def needs_synthesis(spec: Spec) -> bool:
    """Whether a step would repair the network, had it samples."""
    return any(step.prune is not None and step.prune.recovery != "none" for step in spec.steps)


def stand_in(job: Job) -> None:
    """Give the job synthesised rows in the place of noise, where its network carries statistics to match."""
    context = job.context
    with context.stage("synthesis") as stage:
        view, noise = job.view(job.original), job.named(job.data.train)
        if view is None:
            context.warn(
                "the file fixes the number of samples and cannot be freed from it, so no inputs were synthesised"
            )
            return
        if not can_synthesise(view, noise):
            context.warn("the network carries no BatchNorm statistics that inputs could be synthesised from")
            return
        effort = _effort(job.original, job.shapes, job.counts.macs)
        made = synthesise(view, noise, effort, context.spec.seed, context.device, context.progress)
        if made is None or not made.after < made.before:
            context.warn("no inputs were found that match the network's BatchNorm statistics")
            return
        keep_synthetic(context.request.folder, list(made.feeds.values()))
        job.data = synthetic_dataset(context.request.folder, context.spec.tensors)
        job.is_synthetic = True
        stage.metrics |= {"rows": effort.rows, "steps": effort.steps}
        stage.metrics |= {"distance_before": made.before, "distance": made.after}


def _effort(network: Network, shapes: Shapes, macs: int) -> Effort:
    """As many rows and steps as the network's size allows; backward takes twice what forward does."""
    row_steps = MOST_MACS / (3 * max(macs, 1))
    rows = int(min(max(row_steps / MOST_STEPS, FEWEST_ROWS), MOST_ROWS))
    steps = int(min(max(row_steps / rows, FEWEST_STEPS), MOST_STEPS))
    found = observe(network, shapes).shapes
    names = {name for node in network.nodes for name in node.outputs if name in found}
    row_bytes = 2 * 4 * sum(math.prod(found[name]) for name in names)
    num_batches = math.ceil(rows / max(MOST_BYTES // max(row_bytes, 1), 2))
    return Effort(rows, math.ceil(rows / num_batches), steps)
