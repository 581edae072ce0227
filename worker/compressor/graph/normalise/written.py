"""Case 12: a constant into which constants are written becomes an initializer that remembers what it was.

Swin of the second version sets the middle of its bias (the keys' part) to zero in every call. By index, so that nothing
could be said of its channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.errors import CompressorError
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.evaluation import Constants, as_array, as_tensor, evaluate
from worker.compressor.graph.network import Network, Node, Origin

_WRITES = {"Scatter", "ScatterElements", "ScatterND"}
#: What is written and where may itself be computed from constants, in a few steps.
_MOST_STEPS = 64


def apply(network: Network) -> None:
    """Replace every scatter whose inputs are all made of constants."""
    for node in network.nodes:
        if node.op in _WRITES and node.domain == "" and _is_floats(network, node.inputs[0]):
            made = _Steps(network).value(node.outputs[0])
            if made is not None:
                _replace(network, node, as_array(made, network.tensors[node.inputs[0]]))


class _Steps:
    """Values that are made of constants alone, computed when they are asked for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._makers = {name: node for node in network.nodes for name in node.outputs}
        self._constants = Constants(network)
        self._env: dict[str, Any] = {}
        self._left = _MOST_STEPS

    def value(self, name: str) -> torch.Tensor | None:
        """The value as a tensor, None where it depends on an input or takes too many steps."""
        if not self._make(name):
            return None
        found = self._env.get(name)
        return as_tensor(found) if isinstance(found, np.ndarray) else found

    def _make(self, name: str) -> bool:
        if not name or name in self._network.tensors or name in self._env:
            return True
        node, self._left = self._makers.get(name), self._left - 1
        if node is None or self._left < 0 or not all(self._make(given) for given in node.inputs):
            return False
        return self._evaluate(node)

    def _evaluate(self, node: Node) -> bool:
        shapes = self._network.tensors
        try:
            outputs = evaluate(
                node,
                self._env,
                self._network,
                constant=self._constants,
                shape=lambda name: tuple(shapes[name].shape if name in shapes else self._env[name].shape),
            )
        except (CompressorError, RuntimeError, ValueError, LookupError, TypeError):
            return False  # whoever runs it first will tell
        self._env.update(zip(node.outputs, outputs, strict=False))
        return True


def _is_floats(network: Network, name: str) -> bool:
    return name in network.tensors and is_float(network.tensors[name])


def _replace(network: Network, node: Node, array: np.ndarray) -> None:
    written = next(n for n in network.graph if n.outputs[0].name == node.outputs[0])
    if written.outputs[0].is_graph_output():
        return
    origin = network.origins[node.inputs[0]]
    value = network.add_tensor(f"{node.outputs[0]}.written", array, Origin(origin.source, array.shape))
    ir.convenience.replace_all_uses_with(written.outputs[0], value)
    network.graph.remove(written, safe=True)
    network.changed()
