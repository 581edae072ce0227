"""Which positions of which parameters are removed together: what the engine and a peer are compared by."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from worker.compressor.graph.channels.analysis import Analysis
from worker.compressor.graph.network import Network

#: (parameter, axis, position); the input channels of a grouped convolution are counted through all its groups.
Place = tuple[str, int, int]
#: Which unit lies at each place of a group. Numbers of units mean nothing outside their group.
Coupling = dict[Place, int]
Signature = frozenset[tuple[Place, Place]]


@dataclass(frozen=True)
class Comparison:
    """Groups that both have, and the numbers of those that only one has."""

    same: int
    only_ours: list[int]
    only_theirs: list[int]


def couplings(network: Network, analysis: Analysis, parameters: Collection[str]) -> list[Coupling]:
    """The groups of an analysis, in terms of the named parameters of the upload."""
    found = []
    for group in analysis.groups:
        coupling: Coupling = {}
        for piece in group.slices:
            source = network.origins[piece.tensor].source
            if source in parameters:
                flat = piece.units.reshape(-1)
                for position in np.flatnonzero(flat >= 0).tolist():
                    coupling[source, piece.axis, position] = int(flat[position])
        found.append(coupling)
    return found


def compare(ours: Sequence[Coupling], theirs: Sequence[Coupling]) -> Comparison:
    """Two groups are the same if they hold the same places, and the same places go together."""
    mine, other = [signature(c) for c in ours], [signature(c) for c in theirs]
    return Comparison(
        len(set(mine) & set(other)),
        [number for number, one in enumerate(mine) if one not in set(other)],
        [number for number, one in enumerate(other) if one not in set(mine)],
    )


def signature(coupling: Coupling) -> Signature:
    """The group without its numbers: each place with the first place of its unit."""
    first: dict[int, Place] = {}
    for place in sorted(coupling):
        first.setdefault(coupling[place], place)
    return frozenset((place, first[unit]) for place, unit in coupling.items())


def parameters_of(coupling: Iterable[Place]) -> list[str]:
    """The parameters in a group, in order."""
    return sorted({name for name, _, _ in coupling})
