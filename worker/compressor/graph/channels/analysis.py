"""The dependency analysis: which channels can be removed, which go together, and why the others stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from worker.compressor.errors import CompressorError
from worker.compressor.graph.channels.grouping import Analysis, Group, Slice
from worker.compressor.graph.channels.groups import conclude
from worker.compressor.graph.channels.labelling import Labelling
from worker.compressor.graph.channels.stretching import Stretch
from worker.compressor.graph.evaluation import Facts, observe
from worker.compressor.graph.network import Network
from worker.compressor.graph.surgery import cut

__all__ = ["Analysis", "Group", "Slice", "analyse"]

_REFUSED = "a cut of it cannot be carried through the network"


def analyse(network: Network, feeds_shape: Mapping[str, tuple[int, ...]]) -> Analysis:
    """The groups of channels that can be removed, at these input shapes (first axes 1: one sample).

    Model inputs and outputs are never narrowed. Every layer that stays whole has a reason. A cut of random units has
    been tried; groups that it cannot be carried through are not among those returned. The same network (weights aside)
    always gives the same groups.
    """
    facts = observe(network, feeds_shape)
    labelling = _walked(network, facts)
    for port in network.outputs:
        for layer in labelling.layers.get(port.name, []):
            labelling.pin_output(layer.array, port.name)
    analysis = conclude(labelling)
    while failing := _failing(network, analysis):
        for group in failing:
            labelling.refuse(np.flatnonzero(analysis.group_of == group.id), _REFUSED)
        analysis = conclude(labelling)
    return analysis


def _walked(network: Network, facts: Facts) -> Labelling:
    """A finished walk in which every value that repeats one element has channels where it meets some.

    Blocks of a normalisation that cannot go as a whole get narrower in it, if only inexactly.
    """
    given: dict[tuple[str, int], Stretch] = {}
    narrowed: set[str] = set()
    while True:
        names = {name for name, _ in given}
        stretched = {name: tuple(given[key] for key in given if key[0] == name) for name in names}
        labelling = Labelling(network, facts, stretched, narrowed)
        labelling.walk()
        if not labelling.wanted.keys() <= given.keys():
            given = labelling.wanted | given
        elif stuck := labelling.stuck():
            narrowed |= stuck
        else:
            return labelling


def _failing(network: Network, analysis: Analysis) -> list[Group]:
    """Groups of which half of the units cannot be cut, by themselves or together with those before them."""
    if _is_possible(network, analysis, analysis.groups):
        return []
    sound: list[Group] = []
    failing: list[Group] = []
    for group in analysis.groups:
        (sound if _is_possible(network, analysis, [*sound, group]) else failing).append(group)
    return failing


def _is_possible(network: Network, analysis: Analysis, groups: Sequence[Group]) -> bool:
    rng = np.random.default_rng(0)
    try:
        cut(network, analysis, {group.id: group.partition.draw(0.5, rng) for group in groups})
    except (CompressorError, ValueError, LookupError, RuntimeError):
        return False  # whatever the reason: better a layer that stays whole than a job that ends
    return True
