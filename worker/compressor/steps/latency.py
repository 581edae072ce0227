"""The latency of a cut before it is made, and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from app.spec.targets import LatencyTarget
from worker.compressor.errors import GraphError, TargetUnreachable
from worker.compressor.evaluation.isolated import ask
from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.cost import CostModel, Kept
from worker.compressor.graph.counts import sources_of_constants
from worker.compressor.graph.exporters.alone import Loner
from worker.compressor.graph.network import Network
from worker.compressor.graph.surgery import cut
from worker.compressor.job import Job
from worker.compressor.pruning.choices import Choice
from worker.compressor.pruning.latency import LatencyTable, Law, Line, features_of, fit
from worker.compressor.pruning.structures import Narrowing
from worker.compressor.steps.gauges import Gauge, written
from worker.compressor.timing import batch_of, time_networks, warn_unless_alone

#: Cuts whose layers are timed, beside the whole network's, and the shares of a group that they keep.
NUM_CUTS = 8
LEVELS = (0.25, 0.5, 0.75, 1.0)
#: Widths of one layer that are timed at most.
MOST_POINTS = 12
#: How long two whole networks are timed against each other.
SECONDS = 1.5
#: A measured latency so near to the target, from below and from above, is worth no other choice.
NEAR, OVER = 0.97, 1.02


class LatencyGauge(Gauge):
    """Milliseconds of the shortest forward pass, beside the uploaded network in the same run."""

    name = "latency_ms"

    def __init__(self, job: Job, target: LatencyTarget, structure: Narrowing, options: Sequence[Choice]) -> None:
        self._job, self._is_share, self._batch = job, target.share is not None, batch_of(job, target)
        self._table = latency_table(job, self._batch, structure, options)
        self._line, self._whole = Line(), 0.0
        self.measure(job.network, structure.costs, {})
        self.ceiling = target.limit(self._whole)

    def price(self, model: CostModel, kept: Kept) -> float:
        """See `Gauge.price`."""
        return self._line(self._table.seconds(model, kept), self.ceiling)

    def measure(self, made: Network, model: CostModel, kept: Kept) -> float:
        """See `Gauge.measure`."""
        with written(self._job, made, "onnx") as path:
            found = time_networks(self._job, path, [self._batch], SECONDS)
        before, after = found["before"][0]["min"], found["after"][0]["min"]
        self._whole = self._whole or before
        # Of a share only the ratio matters: the machine may have been slower this time.
        time = self._whole * after / before if self._is_share else after
        self._line.points.append((self._table.seconds(model, kept), time))
        return float(time)

    def allows(self, found: float) -> bool:
        """See `Gauge.allows`: a little noise is."""
        return found <= OVER * self.ceiling

    def is_near(self, found: float) -> bool:
        """See `Gauge.is_near`."""
        return found >= NEAR * self.ceiling


@dataclass(frozen=True)
class _Layer:
    """A layer that was written alone: what its law looks at, and its file."""

    features: np.ndarray
    file: Path


def latency_table(job: Job, batch: int, structure: Narrowing, options: Sequence[Choice]) -> LatencyTable:
    """The table of the job's network for `batch` rows at once, on this machine, in the job's runtime and threads.

    Raises:
        CompressorError: where no layer can be timed by itself.
    """
    constants = frozenset(sources_of_constants(job.network).made)
    rows = batch if job.answers.batch_size is None else None
    layers: dict[str, list[_Layer]] = defaultdict(list)
    with TemporaryDirectory(dir=job.context.request.folder) as folder:
        for network, kept in [(job.network, {}), *_cuts(job, structure.analysis, options)]:
            job.context.check()
            loner = Loner(network, job.shapes, rows)
            for work in structure.costs.work(kept):
                name = work.node.outputs[0]
                layers[name].append(_Layer(features_of(work, constants), loner.write(name, Path(folder))))
        # Layers that are alike when they are whole share a law.
        alike: dict[Path, list[str]] = defaultdict(list)
        for name, widths in layers.items():
            alike[widths[0].file].append(name)
        kinds = [[layer for name in names for layer in layers[name]] for names in alike.values()]
        laws = [_law(kind, seconds) for kind, seconds in zip(kinds, _timed(job, kinds), strict=True)]
    found = {name: law for names, law in zip(alike.values(), laws, strict=True) if law for name in names}
    if not found:
        raise TargetUnreachable("no layer of the network can be timed by itself", asked=0, best=0)
    return LatencyTable(found, constants)


def _cuts(job: Job, analysis: Analysis, options: Sequence[Choice]) -> Iterator[tuple[Network, dict[int, np.ndarray]]]:
    """Networks whose groups each keep a share of their own, so that layers are seen with many pairs of widths."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_CUTS):
        shares = rng.choice(LEVELS, len(options))
        kept = {o.group: o.units(o.at_least(share * o.num_units)) for o, share in zip(options, shares, strict=True)}
        try:
            yield cut(job.network, analysis, kept).network, kept
        except GraphError:  # a group that cannot be cut is found, and told, when it is its turn
            continue


def _timed(job: Job, kinds: Sequence[Sequence[_Layer]]) -> list[dict[Path, float]]:
    """For each kind of layer the seconds of its files, of those that run by themselves."""
    files = [list(dict.fromkeys(layer.file for layer in layers))[:MOST_POINTS] for layers in kinds]
    question = {"layers": [[str(file) for file in row] for row in files], "threads": job.context.request.threads}
    found = ask("worker.compressor.evaluation.layer_times", question, job.context.request.folder)
    warn_unless_alone(job, found)
    return [
        {file: time for file, time in zip(row, times, strict=True) if time is not None}
        for row, times in zip(files, found["seconds"], strict=True)
    ]


def _law(layers: Sequence[_Layer], seconds: dict[Path, float]) -> Law | None:
    points = {layer.file: layer.features for layer in layers if layer.file in seconds}
    return fit(np.array(list(points.values())), np.array([seconds[file] for file in points])) if points else None
