"""Weights of recurrent operators as one tensor each, as ONNX files usually have them.

A network that came from torch keeps the parameters of each gate order and direction, and puts them together by Slice and
Concat. In a file that is given away that is done once: runtimes do not repeat it, and whoever counts finds the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.counts import sources_of_constants
from worker.compressor.graph.evaluation import Stepper, as_array
from worker.compressor.graph.network import Network
from worker.compressor.graph.operator import operator_of


def put_together(network: Network) -> Network:
    """A copy in which every weight slot of a recurrent operator reads a constant; itself where that is so already."""
    sources = sources_of_constants(network)
    wanted = {
        node.inputs[slot]: f"{node.name}.{'XWRB'[slot] if slot < 4 else 'P'}"
        for node in network.nodes
        if operator_of(node).assembles
        for slot in operator_of(node).weights
        if slot < len(node.inputs) and node.inputs[slot] in sources.assembled.keys() - network.tensors.keys()
    }
    if not wanted:
        return network
    arrays = _computed(network, {name: network.tensors[sources.assembled[name][0]] for name in wanted})
    result = network.copy()
    for value in [value for node in result.graph for value in node.outputs if value.name in arrays]:
        made = result.add_tensor(wanted[value.name or ""], arrays[value.name or ""])
        ir.convenience.replace_all_uses_with(value, made)
    result.remove_unused()
    return result


def _computed(network: Network, parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values of these names, each made of constants like `parts[name]` alone; nothing else is evaluated."""
    needed = network.copy()
    made = {value.name: value for node in needed.graph for value in node.outputs}
    needed.graph.outputs[:] = [made[name] for name in parts]
    needed.remove_unused()
    stepper = Stepper(needed, {})
    with torch.no_grad():
        for _ in stepper:
            pass
    return {name: as_array(stepper.value(name), like) for name, like in parts.items()}
