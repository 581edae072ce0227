"""What a network would cost with these units kept, without cutting it: for exact targets by bisection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import Macs, operator_of

#: For each group which units it keeps.
Kept = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Shrinking:
    """An axis that gets shorter: `per_unit[group]` says by how many positions for each unit that the group loses."""

    axis: int
    per_unit: Mapping[int, np.ndarray]

    def lost(self, kept: Kept) -> int:
        """Positions that go."""
        named = [(positions, kept[group]) for group, positions in self.per_unit.items() if group in kept]
        return round(sum(float(positions.sum() - positions[units].sum()) for positions, units in named))


@dataclass(frozen=True)
class Work:
    """What one operator has to do: the shapes of what it reads and makes, and its multiply-accumulates."""

    node: Node
    shapes: Mapping[str, tuple[int, ...]]
    macs: int


class CostModel:
    """Parameters, bytes and MACs from what each group keeps. A group that is not named keeps all of its units."""

    def __init__(self, network: Network, analysis: Analysis, feeds_shape: Mapping[str, tuple[int, ...]]) -> None:
        self._sizes = {group.id: group.num_units for group in analysis.groups}
        self._shapes = analysis.facts.shapes
        self._shrinking = {name: shrinkings(analysis, name) for name in self._shapes}
        sources = sources_of_constants(network)
        weights = {name for node in network.nodes for _, name in weights_of(node, sources, network)}
        self._stored: dict[str, list[str]] = {}
        for name, first in network.tied().items():
            self._stored.setdefault(first, []).append(name)
        copies = {first: [name for name in names if name in weights] for first, names in self._stored.items()}
        self._copies = {first: names for first, names in copies.items() if names}
        self._itemsize = {name: array.itemsize for name, array in network.tensors.items()}
        self._counted: list[tuple[Node, Macs]] = [
            (node, macs) for node in network.nodes if (macs := operator_of(node).macs) is not None
        ]

    def shape(self, name: str, kept: Kept) -> tuple[int, ...]:
        """The shape of a value or tensor with these units kept."""
        shape = list(self._shapes[name])
        for shrinking in self._shrinking[name]:
            shape[shrinking.axis] -= shrinking.lost(kept)
        return tuple(shape)

    def num_params(self, kept: Kept) -> int:
        """Elements of all weights; copies of a shared tensor count once as long as they are cut alike."""
        return sum(size for _, size in self._sizes_of(self._copies, kept))

    def num_bytes(self, kept: Kept) -> int:
        """Bytes of all constants, counted like parameters: what of a file depends on what is kept."""
        return sum(size * self._itemsize[name] for name, size in self._sizes_of(self._stored, kept))

    def macs(self, kept: Kept) -> int:
        """Multiply-accumulates at the shapes of the analysis."""
        return sum(work.macs for work in self.work(kept))

    def work(self, kept: Kept) -> Iterator[Work]:
        """Every operator that multiplies, in graph order."""
        for node, macs in self._counted:
            shapes = {name: self.shape(name, kept) for name in (*node.inputs, *node.outputs) if name}
            yield Work(node, shapes, macs(node, shapes))

    def _sizes_of(self, copies: Mapping[str, list[str]], kept: Kept) -> Iterator[tuple[str, int]]:
        """A tensor of each set of copies that are cut alike, and its elements."""
        for names in copies.values():
            alike = {self._signature(name, kept) if len(names) > 1 else None: name for name in names}
            for name in alike.values():
                yield name, math.prod(self.shape(name, kept))

    def _signature(self, name: str, kept: Kept) -> Sequence[object]:
        """What tells differently cut copies of one tensor apart."""
        return tuple(
            (shrinking.axis, group, positions.tobytes())
            for shrinking in self._shrinking[name]
            for group, positions in shrinking.per_unit.items()
            if self._is_cut(group, kept)
        )

    def _is_cut(self, group: int, kept: Kept) -> bool:
        return group in kept and len(kept[group]) < self._sizes[group]


def shrinkings(analysis: Analysis, name: str) -> list[Shrinking]:
    """Along which axes a value or tensor gets shorter when groups lose units."""
    if name in analysis.homes:
        found = [_shrinking(analysis, axis, classes) for axis, classes in _homes_by_axis(analysis, name)]
    else:
        layers = [layer for layer in analysis.labels.get(name, []) if layer.axes]
        found = [_shrinking(analysis, layer.narrowed, layer.rows()) for layer in layers]
    return [shrinking for shrinking in found if shrinking.per_unit]


def _homes_by_axis(analysis: Analysis, name: str) -> list[tuple[int, np.ndarray]]:
    by_axis = {home.axis: np.atleast_2d(home.labels) for home in analysis.homes[name]}
    return list(by_axis.items())


def _shrinking(analysis: Analysis, axis: int, rows: np.ndarray) -> Shrinking:
    groups = analysis.group_of[rows]
    per_unit = {}
    for group in np.unique(groups[groups >= 0]).tolist():
        units = analysis.unit_of[rows[groups == group]]
        per_unit[group] = np.bincount(units, minlength=analysis.groups[group].num_units) / len(rows)
    return Shrinking(axis, per_unit)
