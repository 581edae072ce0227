"""The same network computed in float32: what half-precision (and double) networks are refitted, trained and proved in.

Sums over half-precision weights lose what training is about: an update below 2**-11 of a weight changes nothing
(Micikevicius et al. 2018, arXiv 1710.03740, keep float32 masters for that reason). The view has float32 masters under the
names of the network's own tensors; what comes of them goes back rounded to the file's dtype.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from worker.compressor.graph.counts import sources_of_constants, weights_of
from worker.compressor.graph.network import Network

_HALF = frozenset({"float16", "bfloat16"})
_CODES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16, "float64": ir.DataType.DOUBLE}
#: Attributes that name the dtype of what an operator makes.
_DTYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "softmax_precision")


def foreign_dtypes(network: Network) -> frozenset[str]:
    """The floating-point dtypes other than float32 that have to go for weights and inputs to be float32.

    A float64 aside from weights (a time axis, a sum) has its reasons, and stays.
    """
    found = stored_dtypes(network)
    return found | _HALF if found & _HALF else found


def stored_dtypes(network: Network) -> frozenset[str]:
    """The floating-point dtypes other than float32 in which weights are stored or inputs come."""
    sources = sources_of_constants(network)
    weights = {name for node in network.nodes for _, name in weights_of(node, sources, network)}
    found = {network.tensors[name].dtype.name for name in weights} | {port.dtype for port in network.inputs}
    return frozenset(found & _CODES.keys())


def in_float32(network: Network) -> Network:
    """A copy that computes in float32 where the network does in half precision or double; itself where it does not.

    Inputs keep their dtypes and are cast inside; outputs are float32. Names of tensors and values are the same.
    """
    dtypes = foreign_dtypes(network)
    if not dtypes:
        return network
    codes = {_CODES[name] for name in dtypes}
    result = network.copy()
    for name, array in result.tensors.items():
        if array.dtype.name in dtypes:
            result.tensors[name] = array.astype(np.float32)
            result.graph.initializers[name].type = ir.TensorType(ir.DataType.FLOAT)
    for node in result.graph:
        _widen_attributes(node, codes)
    for value in result.graph.inputs:
        if value.dtype in codes:
            _cast(result, value)
    for value in result.graph.outputs:
        if value.dtype in codes:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    result.changed()
    return result


def rounded(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The array in the dtype of `like`, to the nearest number that is finite there."""
    if array.dtype == like.dtype:
        return array
    if like.dtype == np.float16:
        most = float(np.finfo(np.float16).max)
        array = np.where(np.isfinite(array), np.clip(array, -most, most), array)
    return array.astype(like.dtype)


def _widen_attributes(node: ir.Node, codes: set[ir.DataType]) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in _DTYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in codes:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in codes:
            array = attribute.value.numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))


def _cast(network: Network, value: ir.Value) -> None:
    uses = list(value.uses())
    attributes = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    node = ir.Node("", "Cast", [value], attributes, name=f"{value.name}/InFloat32")
    node.outputs[0].name = network.unique_name(f"{value.name}.float32")
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])
    network.graph.insert_before(network.graph.node(0), node)
    network.changed()
