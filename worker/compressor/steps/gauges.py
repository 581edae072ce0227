"""Targets that only a file can show to be met: predicted while widths are chosen, measured on what was cut, predicted better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.compressor.delivery import outgoing, write
from worker.compressor.graph.cost import CostModel, Kept
from worker.compressor.graph.network import Network
from worker.compressor.job import Job


class Gauge(ABC):
    """One target: `ceiling` in the unit of its figures."""

    name: str
    ceiling: float

    @abstractmethod
    def price(self, model: CostModel, kept: Kept) -> float:
        """The predicted figure of a network with these units kept; rises with each of them."""

    @abstractmethod
    def measure(self, made: Network, model: CostModel, kept: Kept) -> float:
        """The figure of a network that was cut so. What was predicted is from now on right there."""

    @abstractmethod
    def allows(self, found: float) -> bool:
        """Whether a measured figure meets the target."""

    @abstractmethod
    def is_near(self, found: float) -> bool:
        """Whether a figure that meets it is as near as it needs to be."""


class SizeGauge(Gauge):
    """Bytes of the file: those of the tensors, and a rest that is measured on files that were written."""

    name = "size"

    def __init__(self, job: Job, ceiling: float, model: CostModel) -> None:
        self._job, self.ceiling = job, ceiling
        self.measure(job.network, model, {})

    def price(self, model: CostModel, kept: Kept) -> float:
        """See `Gauge.price`."""
        return self._rest + model.num_bytes(kept)

    def measure(self, made: Network, model: CostModel, kept: Kept) -> float:
        """See `Gauge.measure`."""
        with written(self._job, made, self._job.weighed_format) as path:
            found = path.stat().st_size
        self._rest = found - model.num_bytes(kept)
        return found

    def allows(self, found: float) -> bool:
        """See `Gauge.allows`."""
        return found <= self.ceiling

    def is_near(self, found: float) -> bool:
        """See `Gauge.is_near`: within a point of the upload's size."""
        return found >= self.ceiling - 0.01 * self._job.uploaded[1]


@contextmanager
def written(job: Job, network: Network, form: str) -> Iterator[Path]:
    """A network as a file in the form that a job would give it, for as long as it is looked at."""
    with TemporaryDirectory(dir=job.context.request.folder) as folder:
        yield write(outgoing(network, fold_batchnorm=job.context.spec.fold_batchnorm), form, Path(folder))
