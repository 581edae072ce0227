"""One operator by itself as an ONNX file, at the shapes that it meets in its network: what a runtime's clock is held to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from worker.compressor.graph.counts import is_float, sources_of_constants
from worker.compressor.graph.evaluation import Facts, observe
from worker.compressor.graph.network import Network, Node

#: Float constants are written as their shape and this number; a runtime makes weights of them on loading.
_FILLING = 0.01
_DTYPES = {"float32": "FLOAT", "float64": "DOUBLE"}


class Loner:
    """Writes single operators of a network as they are with `batch` rows going in; None is the number that `shapes` has."""

    def __init__(self, network: Network, shapes: Mapping[str, tuple[int, ...]], batch: int | None) -> None:
        self._network = network
        self._facts = _facts(network, shapes, batch)
        self._made = sources_of_constants(network).made
        self._nodes = {node.outputs[0]: node for node in network.nodes}
        self._stored = {node.outputs[0].name: node for node in network.graph}

    def write(self, name: str, folder: Path) -> Path:
        """The file of the operator whose first output is called so; operators that are alike in everything have one file."""
        proto = self._proto(self._nodes[name]).SerializeToString(deterministic=True)
        path = folder / f"{hashlib.sha256(proto).hexdigest()[:32]}.onnx"
        path.write_bytes(proto)
        return path

    def _proto(self, node: Node) -> onnx.ModelProto:
        names = {name: f"x{slot}" for slot, name in enumerate(dict.fromkeys(filter(None, node.inputs)))}
        made = ir.to_proto(self._stored[node.outputs[0]])
        names |= {name: f"y{slot}" for slot, name in enumerate(filter(None, made.output))}
        made.name = made.doc_string = ""
        made.input[:] = [names.get(name, "") for name in made.input]
        made.output[:] = [names.get(name, "") for name in made.output]
        made.ClearField("metadata_props")
        graph = onnx.GraphProto(name="alone")
        for name in dict.fromkeys(filter(None, node.inputs)):
            self._give(graph, name, names[name])
        graph.node.append(made)
        outputs = [name for name in node.outputs if name in self._facts.shapes]
        graph.output.extend(self._value(name, names[name]) for name in outputs)
        opsets = [onnx.helper.make_opsetid(*item) for item in self._network.model.opset_imports.items()]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self._network.model.ir_version)

    def _give(self, graph: onnx.GraphProto, name: str, alias: str) -> None:
        """Where an input comes from: constants are written, numbers known from shapes too; the rest goes in from outside."""
        array = self._network.tensors.get(name, self._facts.known.get(name))
        if array is not None and (array.size == 1 or not is_float(array)):
            graph.initializer.append(ir.to_proto(ir.tensor(array.astype(_plain(array)), name=alias)))
        elif name in self._made:
            shape = np.array(self._facts.shapes[name], np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(shape, f"{alias}.shape"))
            filling = onnx.helper.make_tensor("value", self._dtype(name), [1], [_FILLING])
            graph.node.append(onnx.helper.make_node("ConstantOfShape", [f"{alias}.shape"], [alias], value=filling))
        else:
            graph.input.append(self._value(name, alias))

    def _value(self, name: str, alias: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(alias, self._dtype(name), self._facts.shapes[name])

    def _dtype(self, name: str) -> int:
        dtype = self._facts.dtypes[name]
        return int(ir.DataType[_DTYPES.get(dtype, dtype.upper())])


def _plain(array: np.ndarray) -> np.dtype:
    """The dtype to write it in: numbers known from shapes are Python's."""
    return np.dtype(np.int64) if array.dtype == object else array.dtype


def _facts(network: Network, shapes: Mapping[str, tuple[int, ...]], batch: int | None) -> Facts:
    """Shapes with `batch` rows, from those with one and with two: what grows between them does so for every row.

    To run the network with all rows at once could take more memory than there is.
    """
    if batch is None:
        return observe(network, shapes)
    one, two = (observe(network, {name: (rows, *shape[1:]) for name, shape in shapes.items()}) for rows in (1, 2))

    def grown(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return first + (second - first) * (batch - 1)

    sizes = {
        name: tuple(grown(np.array(shape, np.int64), np.array(two.shapes[name], np.int64)).tolist())
        for name, shape in one.shapes.items()
    }
    known = {
        name: grown(numbers, two.known[name]) if numbers.dtype.kind in "iuO" else numbers
        for name, numbers in one.known.items()
        if name in two.known and numbers.shape == two.known[name].shape
    }
    return Facts(sizes, one.dtypes, known)
