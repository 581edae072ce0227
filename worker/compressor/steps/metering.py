"""What a job measures cut networks with, and remembers for other jobs on the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from app.spec.schema import Prune
from worker.compressor.data.dataset import Rows
from worker.compressor.evaluation.exam import Exam, Figures
from worker.compressor.graph.channels.grouping import Group
from worker.compressor.graph.network import Network
from worker.compressor.job import Job, answers_file, identity
from worker.compressor.outcome import write_whole
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.sensitivity import RATIOS, Meter
from worker.compressor.steps.recovery import repaired
from worker.compressor.steps.samples import SENSITIVITY, refit_rows

#: Rows that the readers of a group are refitted on. A quarter of what a recovery takes drew the same curves.
REFIT_ROWS = 128
#: On fewer validation rows networks are not compared.
FEWEST_EXAMINED = 32
#: About ten seconds on two cores.
AFFORDABLE_MACS = 1e12


def is_open(job: Job, options: Prune) -> bool:
    """Whether the job decides by itself how much of each group of channels goes, and can measure what it tries on the way."""
    is_global = options.structure == "channels" and options.scope == "global" and options.allocation == "auto"
    is_asked = is_global and not CRITERIA.get(options.criterion).is_control
    return is_asked and job.has_data and job.view(job.network) is not None


def is_measured(job: Job, options: Prune, num_groups: int, num_rows: int) -> bool:
    """Whether the widths of a cut follow what the outputs lose: where the spec says so, and by itself where the measurements
    of all groups take no more than `AFFORDABLE_MACS`, and the scores are not losses by which a refit's work is known.
    """
    if options.allocation == "sensitivity":
        return job.has_data
    if not is_open(job, options) or (options.is_refitted and CRITERIA.get(options.criterion).is_loss):
        return False
    rows = min(num_rows, len(examined(job))) + 2 * min(REFIT_ROWS, len(job.data.train))
    return num_groups * len(RATIOS) * rows * job.counts.macs <= AFFORDABLE_MACS


def exam_of(job: Job, num_rows: int) -> Exam:
    """The same seeded rows for every network that is to be compared: those of the validation split, or where these are too
    few to tell networks apart those that layers are refitted on.
    """
    return Exam(examined(job).sample(num_rows, job.context.rng(SENSITIVITY)), job.answers, job.task)


def examined(job: Job) -> Rows:
    """The split that `exam_of` takes its rows from."""
    return job.data.val if len(job.data.val) >= FEWEST_EXAMINED else job.data.train


def meter_for(job: Job, num_rows: int, *, refit: bool = True, told: Callable[[float], None]) -> Meter:
    """Measures what the job's network loses, on so many validation rows."""
    exam, network = exam_of(job, num_rows), job.network
    rows = refit_rows(job, REFIT_ROWS, SENSITIVITY, REFIT_ROWS)

    def examine(made: Network) -> Figures:
        job.context.check()
        return exam(job.runner(made))

    def mend(made: Network, readers: frozenset[str]) -> Network:
        found = repaired(job, made, rows, only=readers) if refit else None
        return made if found is None else found[0]

    options = [num_rows, refit, job.context.spec.seed, str(job.context.device)]
    kept = KeptPoints(answers_file(job.context).with_suffix(".sensitivity.json"), [identity(job.context), *options])
    is_known = network is job.original
    return Meter(network, mend, examine, examine(network), kept if is_known else KeptPoints(None, []), told)


class KeptPoints:
    """Figures of cuts, in a file for other jobs; without a file they are remembered for as long as this lives."""

    def __init__(self, file: Path | None, conditions: list[Any]) -> None:
        self._file = file
        self._conditions = [metadata.version("featherweight"), *conditions]
        self._points: dict[str, Figures] = {}
        if file is not None and file.exists():
            self._points = _read(file)

    def get(self, group: Group, units: np.ndarray) -> Figures | None:
        """See `Kept.get`."""
        return self._points.get(self._key(group, units))

    def put(self, group: Group, units: np.ndarray, figures: Figures) -> None:
        """See `Kept.put`. The file is a cache, so failures are no one's concern."""
        self._points[self._key(group, units)] = figures
        if self._file is not None:
            with suppress(OSError):
                write_whole(self._file, json.dumps(self._points).encode())

    def _key(self, group: Group, units: np.ndarray) -> str:
        """What a figure depends on: everything that was measured with, and which units of which layers stayed."""
        content = json.dumps([self._conditions, list(group.layers), units.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()


def _read(file: Path) -> dict[str, Figures]:
    try:
        points = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return points if isinstance(points, dict) else {}
