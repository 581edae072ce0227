"""Structures: what a prune step removes, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from app.spec.schema import Prune
from worker.compressor.plugins import Described
from worker.compressor.registry import Registry

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Analysis, Group
    from worker.compressor.graph.network import Network
    from worker.compressor.pruning.evidence import Evidence

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Choice:
    """What a prune step decided: units kept by group (groups left whole are missing), and why layers are kept whole."""

    analysis: Analysis
    kept: dict[int, np.ndarray]
    kept_because: dict[str, str] = field(default_factory=dict)


class Structure(Described, ABC):
    """Decides what to remove of one network so that ceilings are met; the cutting itself is the graph's.

    `look` gives what the criterion may look at, for the groups that it is to score.
    """

    def __init__(
        self, network: Network, shapes: Shapes, prune: Prune, look: Callable[[Sequence[Group]], Evidence]
    ) -> None:
        self.network, self.shapes, self.prune, self.look = network, shapes, prune, look

    @abstractmethod
    def choose(self, ceilings: Mapping[str, int], rng: np.random.Generator, refused: Mapping[int, str]) -> Choice:
        """What to keep of the network; `ceilings` are counts (`macs`, `params`) that the result may not exceed.

        `refused` names groups that stay whole, and why.

        Raises:
            TargetUnreachable: where no choice meets the ceilings.
            NothingRemoved: where they are met with everything in place.
            DataNeeded: where the criterion looks at samples, and there are none.
        """


STRUCTURES: Registry[Structure] = Registry("structure", __name__)
