"""Whole channels, with everything that depends on them: narrower layers that every runtime profits from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from app.spec.schema import Prune
from worker.compressor.errors import DataNeeded, NothingRemoved
from worker.compressor.pruning import allocation
from worker.compressor.pruning.choices import Choice as Widths
from worker.compressor.pruning.choices import rounding
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.selection import LEFT_OUT, excluded_tensors, is_chosen
from worker.compressor.pruning.structures import STRUCTURES, Choice, Narrowing, Price

if TYPE_CHECKING:
    from worker.compressor.graph.channels.analysis import Analysis, Group
    from worker.compressor.graph.cost import CostModel
    from worker.compressor.graph.network import Network
    from worker.compressor.pruning.evidence import Evidence
    from worker.compressor.pruning.sensitivity import Losses


@STRUCTURES.register
class Channels(Narrowing):
    """Removes coupled groups of channels; widths are rounded as `round_to` says."""

    name = "channels"
    help = "whole channels of coupled layers, so that the network is narrower everywhere"

    def choose(
        self,
        ceilings: Mapping[str, float],
        rng: np.random.Generator,
        refused: Mapping[int, str],
        prices: Mapping[str, Price] | None = None,
    ) -> Choice:
        """See `Narrowing.choose`."""
        analysis, model = self.analysis, self.costs
        costs: dict[str, Callable[[Mapping[int, np.ndarray]], float]] = {"macs": model.macs, "params": model.num_params}
        costs |= {name: partial(price, model) for name, price in (prices or {}).items()}
        options = self.candidates(rng, refused)
        by_group = {option.group: option for option in options}

        def price(widths: Mapping[int, int]) -> dict[str, float]:
            kept = {group: by_group[group].units(width) for group, width in widths.items()}
            return {name: costs[name](kept) for name in ceilings}

        kept_because = self.kept_because(refused)

        def cut_to(widths: dict[int, int]) -> Choice:
            kept = {o.group: o.units(widths[o.group]) for o in options if widths[o.group] < o.num_units}
            return Choice(analysis, kept, kept_because)

        of_cuts = self._evidence.trials
        trials = None if of_cuts is None else of_cuts.told(cut_to)
        chosen = cut_to(allocation.allocate(options, price, ceilings, self.prune.scope, self._losses(options), trials))
        if not chosen.kept:
            raise NothingRemoved("the network meets the target already, so nothing was removed")
        return chosen

    def candidates(self, rng: np.random.Generator, refused: Mapping[int, str]) -> list[Widths]:
        """What may be kept of each group that is up for removal, by the scores of its units."""
        whole = self._left_whole | dict(refused)
        # A stream for each group: what a group draws does not depend on which others are left out or refused.
        streams = rng.spawn(len(self.analysis.groups))
        return [self._option(group, streams[group.id]) for group in self.analysis.groups if group.id not in whole]

    def kept_because(self, refused: Mapping[int, str]) -> dict[str, str]:
        """Why layers are not up for removal, by layer."""
        reasons, groups = self._left_whole | dict(refused), self.analysis.groups
        by_layer = {layer: reasons[group.id] for group in groups if group.id in reasons for layer in group.layers}
        return dict(self.analysis.kept_because) | by_layer

    def _losses(self, options: Sequence[Widths]) -> Losses | None:
        meter = self._evidence.meter
        if meter is None and self.prune.allocation == "sensitivity":
            raise DataNeeded("allocation by sensitivity looks at what samples lose, and there is no data set")
        if meter is not None:
            return meter.losses(self.analysis, options)
        adds_up = self.prune.scope == "global" and CRITERIA.get(self.prune.criterion).is_loss
        return {option.group: option.lost for option in options} if adds_up else None

    @cached_property
    def analysis(self) -> Analysis:
        """The network's groups of channels."""
        from worker.compressor.graph.channels.analysis import analyse

        return analyse(self.network, self.shapes)

    @cached_property
    def costs(self) -> CostModel:
        """What the network costs with some of its units kept."""
        from worker.compressor.graph.cost import CostModel

        return CostModel(self.network, self.analysis, self.shapes)

    @cached_property
    def _left_whole(self) -> dict[int, str]:
        return _reasons(self.network, self.analysis, self.prune)

    @cached_property
    def _evidence(self) -> Evidence:
        return self.look([group for group in self.analysis.groups if group.id not in self._left_whole])

    @cached_property
    def _operators(self) -> dict[str, str]:
        return {node.name: node.op for node in self.network.nodes}

    def _option(self, group: Group, rng: np.random.Generator) -> Widths:
        criterion = CRITERIA.get(self.prune.criterion)()
        scores = criterion.scores(group, self._evidence, rng)
        convolves = any(self._operators.get(layer) in ("Conv", "ConvTranspose") for layer in group.layers)
        widths = rounding(group.num_units, self.prune.round_to, convolves=convolves)
        kind, floor = self._kind(group), self._floor(group)
        return Widths(group.id, scores, group.partition, widths, criterion.is_comparable, kind, floor)

    def _floor(self, group: Group) -> float | None:
        """Of so many units the step's share of its uploaded width is left of every layer that makes them."""
        if self.prune.floor is None:
            return None
        made = [part for part in group.slices if part.role != "consumes"]
        uploaded = [self.network.origins[part.tensor].shape[part.axis] for part in made]
        lengths = [self.network.tensors[part.tensor].shape[part.axis] for part in made]
        ratio = max((before / now for before, now in zip(uploaded, lengths, strict=True)), default=1.0)
        return self.prune.floor * ratio * group.num_units - 1e-9

    def _kind(self, group: Group) -> Hashable:
        """Groups that the same operators make and read, with kernels of the same size, are of one kind."""
        return tuple(
            sorted(
                (self._operators.get(part.node, ""), part.role, self.network.tensors[part.tensor].shape[2:])
                for part in group.slices
                if self.network.tensors[part.tensor].ndim > 1
            )
        )


def _reasons(network: Network, analysis: Analysis, prune: Prune) -> dict[int, str]:
    """Why groups stay whole: the spec leaves one of their layers out or a layer that reads them, or the cut would not be
    exact and nothing repairs it.
    """
    found, excluded = dict[int, str](), excluded_tensors(network, prune.exclude)
    for group in analysis.groups:
        left_out = next((layer for layer in group.layers if not is_chosen(layer, prune)), None)
        if left_out is not None:
            found[group.id] = (
                LEFT_OUT if len(group.layers) == 1 else f"coupled with '{left_out}', which the spec leaves out"
            )
        elif (reader := next((part.node for part in group.slices if part.tensor in excluded), None)) is not None:
            found[group.id] = f"read by '{reader}', which the spec leaves out"
        elif not group.exact and prune.recovery == "none":
            found[group.id] = f"{group.inexact_because}; a cut without recovery would not be exact"
    return found
