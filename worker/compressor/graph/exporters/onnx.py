"""ONNX out: the user's own graph, only narrower."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import AddInitializersToInputsPass

from worker.compressor.errors import ExportError
from worker.compressor.graph.network import Network

#: Since this IR version an initializer need not be listed among the inputs.
_FIRST_IR_WITHOUT_LISTING = 4


def write_onnx(network: Network, path: Path) -> None:
    """Write the network with the user's names, opset, IR version, metadata, free axes and dtypes.

    Copies of one uploaded tensor that are still equal are written as one. The file passes `onnx.checker` with
    `full_check`.

    Raises:
        ExportError: if it does not.
    """
    merged = _merged(network)
    if merged.model.ir_version < _FIRST_IR_WITHOUT_LISTING:
        _fill(merged)
        AddInitializersToInputsPass()(merged.model)
    proto = merged.to_proto()
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker and shape inference have errors of their own kinds
        raise ExportError(f"the graph to be written is not valid ONNX: {str(error)[:300]}") from error
    path.write_bytes(proto.SerializeToString())


def _merged(network: Network) -> Network:
    result = network.copy()
    initializers = result.graph.initializers
    for name, first in result.tied().items():
        if name != first:
            ir.convenience.replace_all_uses_with(initializers[name], initializers[first])
    result.changed()
    result.remove_unused()
    return result


def _fill(network: Network) -> None:
    for name, value in network.graph.initializers.items():
        value.const_value = ir.tensor(network.tensors[name], name=name)
        value.shape = ir.Shape(network.tensors[name].shape)
