"""Penalties of sparsity training, one file each: what is added to the loss so that weights which matter little become small.

Each is computed in float32 from the parameters themselves, whatever precision the network trains in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.fx import GraphModule

from worker.compressor.plugins import Described
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Group
    from worker.compressor.graph.network import Network


@dataclass(frozen=True)
class Trainee:
    """A network in training: its module, the network that the module was made of, and that network's groups."""

    module: GraphModule
    network: Network
    groups: Sequence[Group]

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`(tensor, parameter)` of each parameter whose elements lie as in the network's tensor."""
        from worker.compressor.graph.training.executor import ROWS, parameter_tensors

        found = dict(self.module.named_parameters())
        for attribute, tensors in parameter_tensors(self.module).items():
            if attribute not in self.module.meta[ROWS]:
                yield tensors[0], found[attribute]


class Penalty(Described, ABC):
    """A non-negative function of the weights that is the smaller the more of them are near zero."""

    #: Whether BatchNorm is put in where it was folded away.
    needs_batchnorm = False

    @abstractmethod
    def of(self, trainee: Trainee) -> Callable[[], Tensor]:
        """The penalty as a function of the parameters as they are: a scalar in float32."""


PENALTIES: Registry[Penalty] = Registry("penalty", __name__)
