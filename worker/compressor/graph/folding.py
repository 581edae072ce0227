"""BatchNormalization folded into the convolution or product right before it, and weights that slow runtimes down.

With factor `a = γ / sqrt(σ² + ε)` a layer `W'u + b` followed by BatchNorm computes `(aW)'u + a(b - μ) + β` (Jacob et al.
2018, arXiv 1712.05877, section 3.2). Computed in float64, stored in the weight's own dtype.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from worker.compressor.graph.counts import is_float
from worker.compressor.graph.network import Network, Origin

_FOLDABLE = ("Conv", "ConvTranspose", "Gemm")
_SPATIAL_SINCE = 9  # before it BatchNormalization could have one statistic per element


def fold_normalisations(network: Network) -> Network:
    """A copy in which every BatchNormalization right behind a Conv, ConvTranspose or Gemm of its own is folded into it.

    Ports keep their names. BatchNorms behind anything else, or behind a layer that others read too, stay.
    """
    result = network.copy()
    for node in list(result.graph):
        if node.op_type == "BatchNormalization" and is_foldable(result, node):
            fold(result, node)
    result.remove_unused()
    return result


def is_foldable(network: Network, node: ir.Node) -> bool:
    """Whether the BatchNormalization and the layer before it are one linear map that nobody else looks into."""
    source = node.inputs[0]
    layer = source.producer() if source is not None else None
    if layer is None or layer.op_type not in _FOLDABLE or layer.domain not in ("", "ai.onnx"):
        return False
    assert source is not None
    constants = [value.name in network.tensors for value in (*node.inputs[1:], *layer.inputs[1:]) if value is not None]
    weight = layer.inputs[1]
    own = len(source.uses()) == 1 and not source.is_graph_output()
    plain = len([value for value in node.outputs if value.name]) == 1 and not _int(node, "training_mode", 0)
    if not (all(constants) and own and plain and weight is not None and len(weight.uses()) == 1):
        return False
    if network.opset < _SPATIAL_SINCE and not _int(node, "spatial", 1):
        return False
    return _offset(network, layer, _num_outputs(network, layer)) is not None


def fold(network: Network, node: ir.Node) -> None:
    """Fold a BatchNormalization for which `is_foldable` holds, in place."""
    source = node.inputs[0]
    layer = source.producer() if source is not None else None
    assert source is not None and layer is not None and layer.inputs[1] is not None
    scale, bias, mean, variance = (network.tensors[_name(value)].astype(np.float64) for value in node.inputs[1:5])
    factor = scale / np.sqrt(variance + _float(node, "epsilon", 1e-5))
    name = _name(layer.inputs[1])
    weight = network.tensors[name]
    offset = _offset(network, layer, len(factor))
    assert offset is not None
    network.tensors[name] = (weight.astype(np.float64) * _spread(layer, weight.shape, factor)).astype(weight.dtype)
    _set_bias(network, layer, ((offset - mean) * factor + bias).astype(weight.dtype))
    _bypass(network, node, source)


def flush_subnormals(network: Network) -> Network:
    """A copy whose float32, float64 and bfloat16 weights hold no subnormal numbers: they become zero.

    Arithmetic on them takes a CPU a hundred times as long. float16 keeps its own: they are normal numbers to the float32
    units that compute with them.
    """
    result = network.copy()
    for name, array in network.tensors.items():
        if is_float(array) and array.dtype != np.float16:
            tiny = np.finfo(np.float64).tiny if array.dtype == np.float64 else np.finfo(np.float32).tiny
            wide = array if array.dtype.kind == "f" else array.astype(np.float32)
            subnormal = (wide != 0) & (np.abs(wide) < tiny)
            if subnormal.any():
                result.tensors[name] = np.where(subnormal, np.zeros((), array.dtype), array)
    return result


def _num_outputs(network: Network, layer: ir.Node) -> int:
    shape = network.tensors[_name(layer.inputs[1])].shape
    if layer.op_type == "ConvTranspose":
        return int(shape[1]) * _int(layer, "group", 1)
    return int(shape[1] if layer.op_type == "Gemm" and not _int(layer, "transB", 0) else shape[0])


def _spread(layer: ir.Node, shape: tuple[int, ...], factor: np.ndarray) -> np.ndarray:
    """The factor of each output, in a shape that multiplies the stored weight."""
    if layer.op_type == "ConvTranspose":  # [C, M / G, …]: the group of an input tells which outputs it reaches
        groups = _int(layer, "group", 1)
        rows = factor.reshape(groups, shape[1]).repeat(shape[0] // groups, 0)
        return rows.reshape(*shape[:2], *(1 for _ in shape[2:]))
    if layer.op_type == "Gemm" and not _int(layer, "transB", 0):
        return factor.reshape(1, -1)
    return factor.reshape(-1, *(1 for _ in shape[1:]))


def _offset(network: Network, layer: ir.Node, num_outputs: int) -> np.ndarray | None:
    """What the layer adds to each output, None where it is not one number per output."""
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    if value is None:
        return np.zeros(num_outputs)
    bias = network.tensors[_name(value)].astype(np.float64)
    if bias.size not in (1, num_outputs) or (bias.size > 1 and bias.shape[-1] != num_outputs):
        return None
    beta = _float(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
    return np.broadcast_to(beta * bias.reshape(-1), (num_outputs,))


def _set_bias(network: Network, layer: ir.Node, bias: np.ndarray) -> None:
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    layer.attributes.pop("beta", None)
    if value is not None and len(value.uses()) == 1 and network.tensors[_name(value)].shape == bias.shape:
        network.tensors[_name(value)] = bias
        return
    source = network.origins[_name(layer.inputs[1])].source
    base = source.removesuffix(".weight") if source.endswith(".weight") else layer.name or layer.outputs[0].name
    made = network.add_tensor(f"{base}.bias", bias)
    network.origins[_name(made)] = Origin(f"{base}.bias", bias.shape)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, made)


def _bypass(network: Network, node: ir.Node, source: ir.Value) -> None:
    """Readers of the BatchNorm read the layer; an output of the network keeps its name."""
    output = node.outputs[0]
    is_output = output.is_graph_output()
    ir.convenience.replace_all_uses_with(output, source, replace_graph_outputs=is_output)
    if is_output:
        old, name = _name(source), _name(output)
        source.shape, source.type = output.shape, output.type
        output.name = f"{name}/folded"
        source.name = name
        if old in network.layers:
            network.layers[name] = network.layers.pop(old)
    network.graph.remove(node, safe=True)
    network.changed()


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default
