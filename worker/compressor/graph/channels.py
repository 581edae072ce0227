"""The dependency analysis: which channels can be removed, which go together, and why the others stay."""

from __future__ import annotations

from collections.abc import Mapping

from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.grouping import Analysis, Group, Slice
from worker.compressor.graph.groups import conclude
from worker.compressor.graph.labelling import Labelling
from worker.compressor.graph.network import Network

__all__ = ["Analysis", "Group", "Slice", "analyse"]


def analyse(network: Network, feeds_shape: Mapping[str, tuple[int, ...]]) -> Analysis:
    """The groups of channels that can be removed, at these input shapes (first axes 1: one sample).

    Model inputs and outputs are never narrowed. Every layer that stays whole has a reason.
    """
    facts = observe(network, feeds_shape)
    labelling = Labelling(network, facts)
    labelling.walk()
    for port in network.outputs:
        for layer in labelling.layers.get(port.name, []):
            labelling.pin_output(layer.array, port.name)
    return conclude(labelling)
