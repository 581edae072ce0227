"""One neural network as a graph of ONNX operators with its weights beside it: the only graph the engine knows.

The structure is the user's own graph, held as `onnx_ir` (names, opset, metadata and dynamic axes are theirs); every
constant lies in `tensors` under its value name. An array in `tensors` is replaced, never written into, so copies of a
network share arrays until one of them changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

Dimension = int | str | None


@dataclass(frozen=True)
class Port:
    """An input or output of the network. A dimension is a number, a name where it is free, or None."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class Node:
    """One operator. `name` is the layer name, absent optional inputs are "", attributes are plain Python or numpy."""

    name: str
    op: str
    domain: str
    since_version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int]:
        """What the operator registry knows it by: `(op, since_version)`, other domains as `domain::op`."""
        return (f"{self.domain}::{self.op}" if self.domain else self.op, self.since_version)


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from in the uploaded file, and what is left of it.

    `kept` maps an axis to the uploaded indices that are kept, `(n,)` or `(parts, n)` where n equal parts of axis 0 keep
    different ones; `zero` holds the axes whose removed slices, set to zero in the upload, give what the cut computes;
    `nodes` names the operators where several share the tensor in the upload and this copy serves only those; `made` is
    true of a constant that the import made (the ones of a normalisation without weights), which the upload has not.
    """

    source: str
    shape: tuple[int, ...]
    nodes: tuple[str, ...] | None = None
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)
    zero: frozenset[int] = frozenset()
    made: bool = False


class Network:
    """A normalised graph with mutable weights.

    `tensors` holds every constant by value name, `origins` says for each of them what it was in the upload, and
    `layers` gives layer names (by first output) where they are not the ONNX node names, and `sample_shapes` are input
    shapes of one sample that the network is known to take. `structure` says how it is called, where that is more than
    tensors in order (see `structure.py`). `lost` are origins of tensors that went as a whole since the upload.
    """

    def __init__(
        self,
        model: ir.Model,
        tensors: dict[str, np.ndarray],
        *,
        origins: dict[str, Origin] | None = None,
        layers: dict[str, str] | None = None,
        sample_shapes: Mapping[str, tuple[int, ...]] | None = None,
        structure: dict[str, Any] | None = None,
        lost: tuple[Origin, ...] = (),
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.sample_shapes = dict(sample_shapes or {})
        self.structure = structure
        self.lost = lost
        self.layers = dict(layers or {})
        self.origins = dict(origins or {})
        for name, array in tensors.items():
            self.origins.setdefault(name, Origin(name, array.shape))
        self._nodes: tuple[Node, ...] | None = None
        self.observed: tuple[Any, Any] | None = None

    @property
    def graph(self) -> ir.Graph:
        """The structure. Call `changed` after an edit."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the standard operator set; the user's own."""
        return int(self.model.opset_imports[""])

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Input ports in graph order."""
        return tuple(_port(value) for value in self.graph.inputs)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Output ports in graph order."""
        return tuple(_port(value) for value in self.graph.outputs)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Operators in topological order."""
        if self._nodes is None:
            self._nodes = tuple(self._read(node) for node in self.graph)
        return self._nodes

    def changed(self) -> None:
        """Forget what was read off the structure, after an edit of it."""
        self._nodes, self.observed = None, None

    def copy(self) -> Network:
        """An independent network; arrays are shared, and safe to share because they are never written into."""
        return Network(
            self.model.clone(),
            dict(self.tensors),
            origins=self.origins,
            layers=self.layers,
            sample_shapes=self.sample_shapes,
            structure=self.structure,
            lost=self.lost,
        )

    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """For each value, the (node, input slot) pairs that read it."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                found.setdefault(name, []).append((node, slot))
        return found

    def tied(self) -> dict[str, str]:
        """For each tensor the one that stands for it: copies of one uploaded tensor that are still equal are one."""
        first: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        copies: dict[str, int] = {}
        for name in self.tensors:
            copies[self.origins[name].source] = copies.get(self.origins[name].source, 0) + 1
        result = {}
        for name, array in self.tensors.items():
            source = self.origins[name].source
            if copies[source] == 1:
                result[name] = name
            else:
                result[name] = first.setdefault((source, array.shape, array.tobytes()), name)
        return result

    def add_tensor(self, name: str, array: np.ndarray, origin: Origin | None = None) -> ir.Value:
        """A new constant of that name (made unique by a suffix where it is taken); returns its value in the graph."""
        unique = self.unique_name(name)
        dtype = ir.DataType.from_numpy(array.dtype)
        value = ir.Value(name=unique, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
        value.const_value = ir.tensor(array, name=unique)
        self.graph.register_initializer(value)
        self.tensors[unique] = array
        self.origins[unique] = origin or Origin(unique, array.shape)
        return value

    def unique_name(self, name: str) -> str:
        """The name, with a number behind it where a value is called so already."""
        taken = self.tensors.keys() | {value.name or "" for node in self.graph for value in node.outputs}
        taken |= {value.name or "" for value in self.graph.inputs}
        unique, number = name, 0
        while unique in taken:
            number += 1
            unique = f"{name}.{number}"
        return unique

    def remove_unused(self) -> None:
        """Drop the nodes and constants that no output depends on. Counts as an edit."""
        firsts = {node: node.outputs[0].name for node in self.graph}
        RemoveUnusedNodesPass()(self.model)
        for node in self.graph:
            node.outputs[0].name = node.outputs[0].name or firsts[node]  # a node is known by it, read or not
        self.changed()
        used = {value.name for node in self.graph for value in node.inputs if value is not None}
        used |= {value.name for value in self.graph.outputs}
        for name in [name for name in self.tensors if name not in used]:
            del self.tensors[name]
            del self.origins[name]
            self.graph.initializers.pop(name, None)

    def to_proto(self, leave_out: Collection[str] = ()) -> onnx.ModelProto:
        """The network as protobuf: the user's graph with the tensors of now, but for those to leave out."""
        kept = dict(self.graph.initializers)
        for name, value in kept.items():
            value.shape = ir.Shape(self.tensors[name].shape)
            if name in leave_out:
                del self.graph.initializers[name]
            else:
                value.const_value = ir.tensor(self.tensors[name], name=name)
        try:
            proto = ir.to_proto(self.model)
        finally:
            self.graph.initializers.clear()
            self.graph.initializers.update(kept)
        for value in kept.values():
            value.const_value = None  # it lies in `tensors`, and may be replaced there
        proto.graph.ClearField("value_info")  # shapes of initializers, which the tensors say themselves
        return proto

    def _read(self, node: ir.Node) -> Node:
        outputs = tuple(value.name or "" for value in node.outputs)
        return Node(
            name=self.layers.get(outputs[0]) or node.name or outputs[0],
            op=node.op_type,
            domain=node.domain,
            since_version=_since_version(node.op_type, self.opset, node.domain),
            inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
            outputs=outputs,
            attributes={name: _plain(attribute) for name, attribute in node.attributes.items()},
        )


def _port(value: ir.Value) -> Port:
    shape = () if value.shape is None else tuple(_dimension(d) for d in value.shape)
    dtype = "undefined" if value.dtype is None else value.dtype.name.lower()
    return Port(value.name or "", {"float": "float32", "double": "float64"}.get(dtype, dtype), shape)


def _dimension(dimension: int | ir.SymbolicDim) -> Dimension:
    if isinstance(dimension, ir.SymbolicDim):
        return dimension.value
    return dimension if dimension >= 0 else None  # some exporters write -1 for a free dimension


def _since_version(op: str, opset: int, domain: str) -> int:
    """The version in which the operator got the meaning it has at `opset`; 0 for one that onnx does not know."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return 0


def _plain(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.value.numpy()
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value
