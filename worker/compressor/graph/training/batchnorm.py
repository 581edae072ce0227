"""BatchNorm put in where exports folded it away, and folded back: the same function before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.evaluation import Stepper, as_tensor
from worker.compressor.graph.folding import fold
from worker.compressor.graph.network import Network, Node

_EPSILON = 1e-5
_SUFFIX = "/InsertedBatchNormalization"


def insert_batchnorm(
    network: Network, feeds: Mapping[str, np.ndarray], untouched: frozenset[str] = frozenset()
) -> Network:
    """A copy with a BatchNormalization after each convolution that has weights of its own (none of `untouched`) and none
    behind it yet.

    Running statistics are measured on `feeds`, scale = standard deviation and bias = mean, so the copy computes the same
    at inference. Fold it back with `fold_batchnorm` before a cut or an export: the new tensors are not the user's.
    """
    statistics = _measure(network, feeds, untouched)
    result = network.copy()
    for node in [node for node in result.graph if node.outputs[0].name in statistics]:
        _insert(result, node, *statistics[node.outputs[0].name or ""])
    result.changed()
    return result


def fold_batchnorm(network: Network) -> Network:
    """A copy without the BatchNormalizations that `insert_batchnorm` put in, their effect in the convolutions."""
    result = network.copy()
    for node in [node for node in result.graph if (node.name or "").endswith(_SUFFIX)]:
        fold(result, node)
    result.remove_unused()
    return result


def with_biases(network: Network, untouched: frozenset[str] = frozenset()) -> Network:
    """A copy in which every convolution that `insert_batchnorm` would take has a bias, 0 where it had none.

    Folding back then only changes tensors that are there, so weights can go between views of one network by name.
    """
    result = network.copy()
    targets = {node.outputs[0] for node in network.nodes if _takes_one(network, node, untouched)}
    for node in [node for node in result.graph if node.outputs[0].name in targets]:
        if len(node.inputs) < 3 or node.inputs[2] is None:
            weight = network.tensors[node.inputs[1].name or ""] if node.inputs[1] is not None else np.zeros(0)
            node.resize_inputs(3)
            bias = np.zeros(len(weight), weight.dtype)
            node.replace_input_with(2, result.add_tensor(f"{node.name or node.outputs[0].name}.bias", bias))
    result.changed()
    return result


def _measure(
    network: Network, feeds: Mapping[str, np.ndarray], untouched: frozenset[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance per channel behind each convolution that gets a BatchNorm."""
    targets = {node.outputs[0] for node in network.nodes if _takes_one(network, node, untouched)}
    found = {}
    with torch.no_grad():
        for node, _, outputs in Stepper(network, {name: as_tensor(array) for name, array in feeds.items()}):
            if node.outputs[0] in targets:
                axes = [axis for axis in range(outputs[0].ndim) if axis != 1]
                variance, mean = torch.var_mean(outputs[0].double(), axes, correction=0)
                found[node.outputs[0]] = (mean.numpy(), variance.numpy())
    return found


def _takes_one(network: Network, node: Node, untouched: frozenset[str]) -> bool:
    if node.op != "Conv" or node.inputs[1] not in network.tensors or not untouched.isdisjoint(node.inputs):
        return False
    consumers = network.consumers()
    followers = consumers.get(node.outputs[0], [])
    own = len(consumers[node.inputs[1]]) == 1
    is_output = node.outputs[0] in {port.name for port in network.outputs}
    return own and not is_output and all(follower.op != "BatchNormalization" for follower, _ in followers)


def _insert(network: Network, node: ir.Node, mean: np.ndarray, variance: np.ndarray) -> None:
    output, base = node.outputs[0], node.name or node.outputs[0].name or ""
    weight = node.inputs[1]
    assert weight is not None
    dtype = network.tensors[weight.name or ""].dtype
    vectors = {
        "scale": np.sqrt(variance + _EPSILON),
        "bias": mean,
        "running_mean": mean,
        "running_var": variance,
    }
    inputs = [network.add_tensor(f"{base}.bn.{name}", array.astype(dtype)) for name, array in vectors.items()]
    attributes = [ir.AttrFloat32("epsilon", _EPSILON)]
    made = ir.Node("", "BatchNormalization", [output, *inputs], attributes, name=f"{base}{_SUFFIX}")
    made.outputs[0].name = network.unique_name(f"{output.name}.bn")
    ir.convenience.replace_all_uses_with(output, made.outputs[0])
    made.replace_input_with(0, output)
    network.graph.insert_after(node, made)
