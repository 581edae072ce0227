"""Which layers a step may change: `include` names those that may be cut, `exclude` those that leave as they came."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection

from app.spec.schema import Prune
from worker.compressor.graph.counts import is_float, sources_of_constants, weights_of
from worker.compressor.graph.network import Network

LEFT_OUT = "left out by the spec"


def is_chosen(layer: str, prune: Prune) -> bool:
    """Whether the spec's globs let this layer be cut."""
    return _matches(layer, prune.include) and not _matches(layer, prune.exclude)


def excluded_tensors(network: Network, exclude: Collection[str]) -> frozenset[str]:
    """The float tensors that layers of these names read, and those that are one with them."""
    sources, tied = sources_of_constants(network), network.tied()
    found = set[str]()
    for node in network.nodes:
        if _matches(node.name, exclude):
            found |= {name for _, name in weights_of(node, sources, network)} | {*node.inputs}
    standing = {tied[name] for name in found if name in network.tensors and is_float(network.tensors[name])}
    return frozenset(name for name in network.tensors if tied[name] in standing)


def _matches(layer: str, globs: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(layer, glob) for glob in globs)
