"""What a criterion may look at: the network as it is, and what samples make of it, computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.errors import DataNeeded
from worker.compressor.pruning.combining import Combine

if TYPE_CHECKING:
    from worker.compressor.distillation.objective import OutputKind, Task
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.network import Network
    from worker.compressor.pruning.activations import Activations, Inputs
    from worker.compressor.pruning.gradients import Moments, UnitGradients
    from worker.compressor.pruning.influences import Influences
    from worker.compressor.pruning.sensitivity import Meter
    from worker.compressor.pruning.structures import Choice
    from worker.compressor.pruning.trials import Trials


@dataclass(frozen=True)
class Samples:
    """Rows to look at a network with: prepared inputs by name, and labels where there are any.

    `pass_rows` is how many rows one forward pass has room for; `kinds` says what each output is. `check` is called between
    layers, batches and rounds, and raises where the run was told to stop.
    """

    feeds: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    task: Task
    kinds: tuple[OutputKind | None, ...]
    pass_rows: int
    seed: int
    check: Callable[[], None] = lambda: None


@dataclass
class Evidence:
    """The network that is about to be cut, its groups, and how the weights of a group are combined.

    `view` is the network in float32 with a free batch, its tensors under their own names; `samples` is None where the job
    has no data; `meter` measures what is lost without some units of a group, and `trials` what is lost with a whole cut, where
    that is wanted.
    """

    network: Network
    groups: Sequence[Group]
    combine: Combine = "readers"
    view: Network | None = None
    samples: Samples | None = None
    refit: bool = True
    meter: Meter | None = None
    trials: Trials[Choice] | None = None

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """The weights by name."""
        return self.network.tensors

    @cached_property
    def gradients(self) -> dict[int, UnitGradients]:
        """What a loss says of each unit, by group.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.gradients import unit_gradients

        view, samples = self._seen()
        return unit_gradients(view, self.groups, samples, self.combine)

    @cached_property
    def activations(self) -> Activations:
        """What layers read and make.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.activations import observe_layers

        view, samples = self._seen()
        return observe_layers(view, self.groups, samples)

    @cached_property
    def costs(self) -> dict[int, np.ndarray]:
        """What each unit costs the layers that read it when its turn to go comes, by group.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.activations import observe_costs

        view, samples = self._seen()
        return observe_costs(view, self.groups, samples, refit=self.refit)

    @cached_property
    def moments(self) -> Mapping[str, Moments]:
        """What a loss says of each weight, by tensor; a tensor that no gradient reaches has zeros.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.gradients import weight_moments

        return weight_moments(*self._seen())

    @cached_property
    def inputs(self) -> dict[str, Inputs]:
        """What the weights of linear layers are multiplied with, by tensor.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.activations import observe_inputs

        return observe_inputs(*self._seen())

    @cached_property
    def influences(self) -> Influences:
        """What residual branches do.

        Raises:
            DataNeeded: where the job has no data.
        """
        from worker.compressor.pruning.influences import Influences

        return Influences(*self._seen())

    def _seen(self) -> tuple[Network, Samples]:
        if self.view is None or self.samples is None:
            raise DataNeeded("this criterion looks at what samples do in the network, and there is no data set")
        return self.view, self.samples
