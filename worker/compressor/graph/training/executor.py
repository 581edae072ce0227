"""The training view: the network as an `fx.GraphModule` of torch functions, its parameters one to one with the weights.

No wrapper runs at call time: the module is the plain sequence of torch calls that one would write by hand, scriptable,
with a free batch. BatchNorm follows `module.train()`; its momentum is the attribute `batchnorm_momentum`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.evaluation import as_array, as_tensor, evaluate, from_numbers, observe
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.training.fusion import SHAPE, fuse
from worker.compressor.graph.training.rows import cancel
from worker.compressor.graph.training.strides import skip_in_inputs

_MOMENTUM = "batchnorm_momentum"
ROWS = "rows"  # key in `GraphModule.meta`: attribute name → which rows of its tensors (axis 1) it holds, in its order
TENSORS = "tensors"  # key in `GraphModule.meta`: attribute name → names of the tensors that it holds


def to_module(
    network: Network, *, trainable: bool = True, single: bool = False, fused: bool = True, also: Sequence[str] = ()
) -> fx.GraphModule:
    """The network as a module: positional inputs in graph order, a tuple of outputs (`single`: one output as it is).

    Weights are parameters (`requires_grad` as `trainable`), BatchNorm statistics and other constants are buffers.
    Tensors that are tied in the network are one parameter. The module owns copies: see `write_back`. `fused`: what is
    spelled out in the network is computed by one function where torch has it (see `fusion`), and weights may lie in
    another order of rows (`ROWS`). `also` names tensors of the network that the module gives behind the outputs.
    """
    recorder = _Recorder(network, trainable, fused)
    for port in network.inputs:
        recorder.env[port.name] = recorder.placeholder(port.name)
        recorder.device = recorder.env[port.name].device  # asked only where something is made from shapes alone
    for node in network.nodes:
        outputs = evaluate(
            node,
            recorder.env,
            network,
            constant=recorder.constant,
            shape=recorder.facts.shapes.__getitem__,
            dtype=recorder.facts.dtypes.__getitem__,
            device=recorder.device,
            training=recorder.attribute("training"),
            momentum=recorder.attribute(_MOMENTUM),
            lift=recorder.lift,
            in_order=recorder.in_order,
        )
        recorder.note(node, map(recorder.held, outputs))
    return recorder.finish([*(port.name for port in network.outputs), *also], single)


def write_back(network: Network, module: fx.GraphModule) -> None:
    """Put the module's weights and BatchNorm statistics into `network.tensors`."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    for attribute, names in module.meta[TENSORS].items():
        if attribute not in state:
            continue
        for name in names:
            array = as_array(state[attribute], network.tensors[name])
            if attribute in module.meta[ROWS]:
                array = array[:, np.argsort(module.meta[ROWS][attribute])]
            network.tensors[name] = array


def parameter_tensors(module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """For each parameter of the module the names of the network's tensors that it is."""
    parameters = {name for name, _ in module.named_parameters()}
    return {name: tensors for name, tensors in module.meta[TENSORS].items() if name in parameters}


class _Recorder:
    """Records the torch calls of a network into an fx graph."""

    def __init__(self, network: Network, trainable: bool, fused: bool) -> None:
        self.network = network
        self.facts = observe(network, network.sample_shapes)
        self.env: dict[str, Any] = {}
        self.device: Any = "cpu"
        self._trainable, self._fused = trainable, fused
        self._graph = fx.Graph()
        self._tracer = fx.proxy.GraphAppendingTracer(self._graph)
        self._root = nn.Module()
        self._tied = _tied(network)
        self._attributes: dict[str, str] = {}
        self._rows: dict[str, Sequence[int]] = {}
        self._proxies: dict[str, fx.Proxy] = {}
        self._readers = Counter(name for node in network.nodes for name in node.inputs)
        self._readers.update(port.name for port in network.outputs)
        sources = sources_of_constants(network)
        self._weights = {
            self._tied[name]
            for node in network.nodes
            for slot, name in weights_of(node, sources, network)
            if network.tensors[name].size > 1 or _is_bias(network, node, slot)
        }
        setattr(self._root, _MOMENTUM, 0.1)

    def placeholder(self, name: str) -> fx.Proxy:
        proxy = fx.Proxy(self._graph.placeholder(identifier(name)), self._tracer)
        proxy.node.meta[SHAPE] = self.facts.shapes[name]
        return proxy

    def note(self, node: Node, outputs: Iterable[Any]) -> None:
        """The node's outputs, each with the shape that it has in a sample."""
        for name, value in zip(node.outputs, outputs, strict=False):
            self.env[name] = value
            if isinstance(value, fx.Proxy) and name:
                value.node.meta[SHAPE] = self.facts.shapes[name]

    def constant(self, name: str) -> fx.Proxy:
        """The tensor as an attribute of the module, made at its first use."""
        first = self._tied[name]
        if first not in self._attributes:
            array = self.network.tensors[first]
            self._attributes[first] = self._store(first, as_tensor(array), first in self._weights)
        return self.attribute(self._attributes[first])

    def in_order(self, name: str, order: Sequence[int]) -> fx.Proxy | None:
        """The tensor as an attribute with axis 1 in this order, where it is a constant that only one node reads."""
        tied = [other for other, first in self._tied.items() if first == self._tied.get(name)]
        if not self._fused or tied != [name] or self._readers[name] != 1:
            return None
        attribute = self._store(name, as_tensor(self.network.tensors[name][:, order]), name in self._weights)
        self._attributes[name], self._rows[attribute] = attribute, order
        return self.attribute(attribute)

    def lift(self, array: np.ndarray) -> fx.Proxy:
        """Known numbers that an operator needs as a tensor."""
        return self.attribute(self._store("known", as_tensor(array), False))

    def held(self, value: Any) -> Any:
        """A tensor that was made of constants alone becomes a buffer; proxies and known numbers are as they are."""
        return self.attribute(self._store("made", value, False)) if isinstance(value, torch.Tensor) else value

    def attribute(self, name: str) -> fx.Proxy:
        """One `get_attr` per attribute, so that a weight is looked up once."""
        if name not in self._proxies:
            self._proxies[name] = fx.Proxy(self._graph.get_attr(name), self._tracer)
        return self._proxies[name]

    def finish(self, outputs: list[str], single: bool) -> fx.GraphModule:
        """The module that returns these values."""
        results = []
        for name in outputs:
            value = self.env[name] if name in self.env else self.constant(name)
            if isinstance(value, np.ndarray):
                value = from_numbers(value, self.device) if value.dtype == object else self.lift(value)
            results.append(value.node)
        self._graph.output(results[0] if single and len(results) == 1 else tuple(results))
        cancel(self._graph, self._root)
        if self._fused:
            fuse(self._graph, self._root)
        if self._trainable:
            skip_in_inputs(self._graph, self._root)
        module = fx.GraphModule(self._root, self._graph)
        tensors: dict[str, tuple[str, ...]] = {}
        for name, first in self._tied.items():
            if first in self._attributes:
                attribute = self._attributes[first]
                tensors[attribute] = (*tensors.get(attribute, ()), name)
        module.meta[TENSORS], module.meta[ROWS] = tensors, self._rows
        return module

    def _store(self, name: str, tensor: torch.Tensor, weight: bool) -> str:
        base = attribute = identifier(name)
        number = 0
        while hasattr(self._root, attribute):
            number += 1
            attribute = f"{base}_{number}"
        if weight:
            self._root.register_parameter(attribute, nn.Parameter(tensor, requires_grad=self._trainable))
        else:
            self._root.register_buffer(attribute, tensor)
        return attribute


def _tied(network: Network) -> dict[str, str]:
    """What `Network.tied` says, but statistics of BatchNorm are each their own: training moves them apart."""
    statistics = {node.inputs[slot] for node in network.nodes if node.op == "BatchNormalization" for slot in (3, 4)}
    first: dict[str, str] = {}
    return {name: name if name in statistics else first.setdefault(one, name) for name, one in network.tied().items()}


def _is_bias(network: Network, node: Node, slot: int) -> bool:
    """Whether a single number is a weight: of a layer, or added to what a layer made; else it is a threshold."""
    if node.op not in ("Add", "Sub", "Mul", "Div"):
        return True
    makers = {output: maker for maker in network.nodes for output in maker.outputs}
    maker = makers.get(node.inputs[1 - slot])
    return node.op == "Add" and maker is not None and operator_of(maker).macs is not None


def identifier(name: str) -> str:
    """A Python name that tells where it comes from."""
    plain = re.sub(r"\W+", "_", name).strip("_")
    return plain if re.match(r"[A-Za-z]", plain) else f"t_{plain}"
