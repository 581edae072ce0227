"""Case 3: Identity of an initializer goes.

The TorchScript-based exporter merges initializers of equal value behind Identity nodes. A vector that others read too
gets a copy of its own, which remembers the source; a matrix or a kernel behind Identity is the same tensor, tied on purpose.
"""

from __future__ import annotations

import onnx_ir as ir

from worker.compressor.graph.network import Network


def apply(network: Network) -> None:
    """Remove every Identity node whose input is a constant and whose output is not the network's."""
    for node in list(network.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Identity" or source is None or source.name not in network.tensors:
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(output, _stand_in(network, source, output.name or ""))
        network.graph.remove(node, safe=True)
        network.changed()


def _stand_in(network: Network, source: ir.Value, name: str) -> ir.Value:
    array = network.tensors[source.name or ""]
    if array.ndim != 1 or len(source.uses()) == 1:
        return source
    return network.add_tensor(f"{name}.copy", array, network.origins[source.name or ""])
