"""One operator as a network, for comparison with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph.nets import difference, reference
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Network
from worker.compressor.graph.training.executor import to_module


def one_node(
    op: str,
    inputs: list[np.ndarray | None],
    opset: int,
    *,
    num_outputs_made: int = 1,
    fed: int = 1,
    **attributes: object,
) -> onnx.ModelProto:
    """A model of this operator: the first `fed` inputs are the model's, the others initializers, None absent."""
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(num_outputs_made)]
    node = helper.make_node(op, names, outputs, name="node", **attributes)
    ports = [
        helper.make_tensor_value_info(
            names[index], helper.np_dtype_to_tensor_dtype(inputs[index].dtype), ["n", *inputs[index].shape[1:]]
        )
        for index in range(fed)
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    initializers = [
        numpy_helper.from_array(array, names[index])
        for index, array in enumerate(inputs)
        if index >= fed and array is not None
    ]
    graph = helper.make_graph([node], "one", ports, made, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.UNDEFINED:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return model


def load(model: onnx.ModelProto, folder: Path, signature: list[dict[str, Any]] | None = None) -> Network:
    """Import it as an upload."""
    path = folder / "one.onnx"
    onnx.save(model, path)
    return import_model(path, "onnx", signature)[0]


def check(
    op: str, inputs: list[np.ndarray | None], opset: int, folder: Path, *, fed: int = 1, **attributes: object
) -> Network:
    """The operator's torch function, stepped and recorded and scripted, gives what onnxruntime gives."""
    model = one_node(op, inputs, opset, fed=fed, **attributes)
    feeds = {f"i{index}": inputs[index] for index in range(fed)}
    path = folder / "one.onnx"
    onnx.save(model, path)
    signature = [{"name": name, "dtype": array.dtype.name, "shape": list(array.shape)} for name, array in feeds.items()]
    network = import_model(path, "onnx", signature)[0]
    wanted = reference(model, feeds)
    with torch.no_grad():
        stepped = list(run(network, feeds).values())
        module = to_module(network).eval()
        given = [torch.from_numpy(array) for array in feeds.values()]
        recorded, scripted = module(*given), torch.jit.script(module)(*given)
    for expected, *got in zip(wanted, stepped, recorded, scripted, strict=True):
        for array in got:
            assert difference(expected.astype(np.float64), np.asarray(array).astype(np.float64)) < 2e-6
    return network
