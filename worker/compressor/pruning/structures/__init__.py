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
    from worker.compressor.graph.cost import CostModel
    from worker.compressor.graph.network import Network
    from worker.compressor.graph.residuals import Residual
    from worker.compressor.pruning.choices import Choice as Widths
    from worker.compressor.pruning.evidence import Evidence

Shapes = Mapping[str, tuple[int, ...]]
#: A figure of a network with these units of its groups kept; it rises with each of them.
Price = Callable[["CostModel", Mapping[int, np.ndarray]], float]


@dataclass(frozen=True)
class Choice:
    """What a prune step decided: units kept by group (groups left whole are missing), and why layers are kept whole."""

    analysis: Analysis
    kept: dict[int, np.ndarray]
    kept_because: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Masks:
    """What a prune step decided: which numbers of each tensor stay (the others become 0), and why layers keep all."""

    kept: dict[str, np.ndarray]
    kept_because: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skips:
    """What a prune step decided: residual branches that go, and why layers are kept."""

    removed: list[Residual]
    kept_because: dict[str, str] = field(default_factory=dict)


class Structure(Described, ABC):
    """Decides what to remove of one network. `look` gives what the criterion may look at, for the groups that it scores."""

    def __init__(
        self, network: Network, shapes: Shapes, prune: Prune, look: Callable[[Sequence[Group]], Evidence]
    ) -> None:
        self.network, self.shapes, self.prune, self.look = network, shapes, prune, look


class Narrowing(Structure):
    """Makes layers narrower; the cutting itself is the graph's."""

    @property
    @abstractmethod
    def analysis(self) -> Analysis:
        """The network's groups of channels."""

    @property
    @abstractmethod
    def costs(self) -> CostModel:
        """What the network costs with some of its units kept."""

    @abstractmethod
    def candidates(self, rng: np.random.Generator, refused: Mapping[int, str]) -> list[Widths]:
        """What may be kept of each group that is up for removal."""

    @abstractmethod
    def choose(
        self,
        ceilings: Mapping[str, float],
        rng: np.random.Generator,
        refused: Mapping[int, str],
        prices: Mapping[str, Price] | None = None,
    ) -> Choice:
        """What to keep of the network; `ceilings` are figures that the result may not exceed.

        `macs` and `params` are counted, `prices` predict the others. `refused` names groups that stay whole, and why.

        Raises:
            TargetUnreachable: where no choice meets the ceilings.
            NothingRemoved: where they are met with everything in place.
            DataNeeded: where the criterion looks at samples, and there are none.
        """


class Masking(Structure):
    """Sets single weights to zero, and leaves every shape as it is."""

    @abstractmethod
    def choose(self, num_zeros: int | None, rng: np.random.Generator) -> Masks:
        """Which weights stay. `num_zeros` is how many of the network's parameters shall be 0, None where the structure says.

        Raises:
            TargetUnreachable: where there cannot be so many.
            NothingRemoved: where there are already.
            DataNeeded: where the criterion looks at samples, and there are none.
        """


class Shortening(Structure):
    """Takes residual branches out as a whole, and leaves the width of every layer as it is."""

    @abstractmethod
    def choose(self, ceilings: Mapping[str, float], rng: np.random.Generator, refused: Mapping[str, str]) -> Skips:
        """Which branches go; `ceilings` as of `Narrowing.choose`. `refused` names sums whose branches stay, and why.

        Raises:
            TargetUnreachable, NothingRemoved, DataNeeded: as `Narrowing.choose`.
        """


STRUCTURES: Registry[Structure] = Registry("structure", __name__)


def structure_of(prune: Prune) -> type[Structure]:
    """The class of a step's structure: `2:4` and the like are `n:m`."""
    return STRUCTURES.get("n:m" if ":" in prune.structure else prune.structure)
