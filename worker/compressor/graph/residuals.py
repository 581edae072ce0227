"""Residual branches that can go as a whole: f in `x + f(x)`, where what is left is x itself.

Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks (arXiv 1605.06431): a network of
identity skips goes on working when one of its branches is taken out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from worker.compressor.graph.counts import is_layer, sources_of_constants, weights_of
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.silencing import Weight, silencers


@dataclass(frozen=True)
class Residual:
    """One branch. `add` is the sum (the first output of its node), whose input `slot` is the skip.

    `nodes` (by first output) are there for the branch alone; `layers` names those of them that have weights or multiply.
    With the weights of `silencers` set to zero the branch is zero.
    """

    add: str
    slot: int
    nodes: frozenset[str]
    layers: tuple[str, ...]
    silencers: tuple[Weight, ...]


@dataclass(frozen=True)
class Cost:
    """Counts of what is left of a network."""

    macs: int
    params: int


class Residuals:
    """The residual branches of a network, and what it costs without some of them."""

    def __init__(self, network: Network, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._network, self._facts = network, observe(network, shapes)
        self._sources, self._tied = sources_of_constants(network), network.tied()
        self._makers = {output: node for node in network.nodes for output in node.outputs if output}
        self._outputs = [port.name for port in network.outputs]

    @cached_property
    def branches(self) -> list[Residual]:
        """In graph order, those inside others included."""
        found = [self._branch(node, slot) for node in self._network.nodes for slot in self._skips(node)]
        return [residual for residual in found if residual is not None]

    @property
    def layers(self) -> list[str]:
        """The names of all nodes that have weights or multiply."""
        return [node.name for node in self._network.nodes if self._is_layer(node)]

    def cost(self, removed: Collection[Residual]) -> Cost:
        """Counts without these branches, as `count` would give them for the network that `shorten` makes."""
        living = self._living({residual.add: residual.slot for residual in removed})
        tensors = {name for output in living for name in self._priced[output][1]}
        return Cost(
            sum(self._priced[output][0] for output in living),
            sum(self._network.tensors[name].size for name in tensors),
        )

    @cached_property
    def _priced(self) -> dict[str, tuple[int, frozenset[str]]]:
        """For each node its multiply-accumulates, and the weights that it reads, tied ones under one name."""
        found = {}
        for node in self._network.nodes:
            operator = operator_of(node)
            macs = operator.macs(node, self._facts.shapes) if operator.macs else 0
            weights = weights_of(node, self._sources, self._network)
            found[node.outputs[0]] = (macs, frozenset(self._tied[name] for _, name in weights))
        return found

    def _skips(self, node: Node) -> list[int]:
        """The input slots that may be a skip: two operands of one shape, of which the other is computed from this one."""
        if (node.op, node.domain) != ("Add", "") or len(node.inputs) != 2:
            return []
        shapes = {self._facts.shapes[name] for name in (*node.inputs, node.outputs[0])}
        is_computed = not any(name in self._sources.made or name in self._facts.known for name in node.inputs)
        return [slot for slot in (0, 1) if is_computed and len(shapes) == 1 and self._path(*_turned(node, slot))]

    def _branch(self, node: Node, slot: int) -> Residual | None:
        living = self._living({node.outputs[0]: slot})
        gone = self._living({}) - living
        weights = silencers(_turned(node, slot)[1], self._makers, self._network, self._sources, living)
        layers = [other.name for other in self._network.nodes if other.outputs[0] in gone and self._is_layer(other)]
        if weights is None or not layers or self._path(*_turned(node, slot)) & living:
            return None
        return Residual(node.outputs[0], slot, frozenset(gone), tuple(layers), weights)

    def _is_layer(self, node: Node) -> bool:
        return bool(self._priced[node.outputs[0]][0]) or is_layer(node, self._sources, self._network)

    def _path(self, start: str, end: str) -> set[str]:
        """The nodes (by first output) through which data goes from one value to another; sizes are no data."""
        before, waiting = set[str](), [end]
        while waiting:
            node = self._makers.get(waiting.pop())
            if node is not None and node.outputs[0] not in before and node.outputs[0] not in self._facts.known:
                before.add(node.outputs[0])
                waiting += [name for name in node.inputs if name and name != start]
        reached, found = {start}, set[str]()
        for node in self._network.nodes:
            if node.outputs[0] in before and not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
                found.add(node.outputs[0])
        return found

    def _living(self, skips: Mapping[str, int]) -> set[str]:
        """The nodes (by first output) that the outputs depend on where these sums are their skips alone."""
        found, waiting = set[str](), list(self._outputs)
        while waiting:
            node = self._makers.get(waiting.pop())
            if node is None or node.outputs[0] in found:
                continue
            found.add(node.outputs[0])
            slot = skips.get(node.outputs[0])
            waiting += [name for name in node.inputs if name] if slot is None else [node.inputs[slot]]
        return found


def _turned(node: Node, slot: int) -> tuple[str, str]:
    """The skip and the branch's end."""
    return node.inputs[slot], node.inputs[1 - slot]
