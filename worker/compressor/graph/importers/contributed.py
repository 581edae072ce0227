"""Operators that onnxruntime's optimisers write, in its own domain or under the standard's name before its time.

They are spelled in standard operators, as they were before the optimiser joined them; the one that has the weights keeps the
node's name. Those that are not here are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_DOMAIN = "com.microsoft"
_GELU, _LAYER_NORM, _AXES_AS_INPUT, _RMS_NORM = 20, 17, 18, 23  # the opsets since which they are standard
_ACTIVATIONS = {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Clip"}
_EPSILON = {"LayerNormalization": 1e-5, "SimplifiedLayerNormalization": 1e-5}


def write_out(model: onnx.ModelProto) -> None:
    """Replace each such node of the graph whose form is known."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        spelling = _spelled(model.graph, node, opset)
        nodes += [node] if spelling is None else spelling.nodes
        model.graph.initializer.extend([] if spelling is None else spelling.constants)
    if any(new is not old for new, old in zip(nodes, model.graph.node, strict=False)):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def _spelled(graph: onnx.GraphProto, node: onnx.NodeProto, opset: int) -> _Spelling | None:
    """The node in standard operators; None where it is one, or of a form that is not known."""
    spell = _speller(node, opset)
    if spell is None or not node.input or not node.output:
        return None
    try:
        spelling = _Spelling(graph, node, opset)
        return spelling if spell(spelling) else None
    except (
        ValueError,
        TypeError,
        AttributeError,
    ):  # attributes of other types than they have; the file was not checked
        return None


class _Spelling:
    """The standard nodes of one node."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, opset: int) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self._graph = graph
        self._base = node.name or next(iter(node.output), node.op_type)

    def given(self, slot: int) -> str:
        """An input's name, "" where it is left out."""
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def emit(self, op: str, *inputs: str, out: str = "", main: bool = False, **attributes: Any) -> str:
        """A node more; returns its output."""
        name = f"{self._base}/{op}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [out or f"{name}.out"], name=self.node.name if main else name, **attributes)
        )
        return out or f"{name}.out"

    def number(self, value: float | list[int]) -> str:
        """A constant: one number in the graph's own float type, or whole numbers."""
        name = f"{self._base}/constant_{len(self.constants)}"
        kinds = (np.int64,) if isinstance(value, list) else tuple(_float_types(self._graph))
        dtype = kinds[0] if kinds else np.float32
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def mean(self, x: str) -> str:
        """Over the last axis, which stays."""
        if self.opset < _AXES_AS_INPUT:
            return self.emit("ReduceMean", x, axes=[-1], keepdims=1)
        return self.emit("ReduceMean", x, self.number([-1]), keepdims=1)


def _float_types(graph: onnx.GraphProto) -> Iterator[Any]:
    for tensor in graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            yield helper.tensor_dtype_to_np_dtype(tensor.data_type)


def _speller(node: onnx.NodeProto, opset: int) -> Callable[[_Spelling], bool] | None:
    if node.domain == _DOMAIN:
        return _SPELLERS.get(node.op_type)
    early = node.op_type == "SimplifiedLayerNormalization" or (
        node.op_type == "LayerNormalization" and opset < _LAYER_NORM
    )
    return _SPELLERS[node.op_type] if node.domain in ("", "ai.onnx") and early else None


def _gelu(to: _Spelling, x: str, out: str, *, tanh: bool) -> bool:
    if to.opset >= _GELU:
        to.emit("Gelu", x, out=out, main=True, approximate="tanh" if tanh else "none")
        return True
    if tanh:
        cube = to.emit("Mul", to.emit("Mul", to.emit("Mul", x, x), x), to.number(0.044715))
        inner = to.emit("Tanh", to.emit("Mul", to.emit("Add", x, cube), to.number(math.sqrt(2 / math.pi))))
    else:
        inner = to.emit("Erf", to.emit("Div", x, to.number(math.sqrt(2))))
    share = to.emit("Add", inner, to.number(1.0))
    to.emit("Mul", to.emit("Mul", x, share), to.number(0.5), out=out)
    return True


def _gelus(to: _Spelling) -> bool:
    x = to.emit("Add", to.given(0), to.given(1), main=to.opset < _GELU) if to.given(1) else to.given(0)
    return _gelu(to, x, to.node.output[0], tanh=to.node.op_type == "FastGelu")


def _quick_gelu(to: _Spelling) -> bool:
    x = to.given(0)
    gate = to.emit("Sigmoid", to.emit("Mul", x, to.number(to.attributes.get("alpha", 1.702))))
    to.emit("Mul", x, gate, out=to.node.output[0])
    return True


def _normalise(to: _Spelling, x: str, scale: str, bias: str, *, centred: bool) -> bool:
    epsilon, out = to.attributes.get("epsilon", _EPSILON.get(to.node.op_type, 1e-12)), to.node.output[0]
    if to.attributes.get("axis", -1) != -1 or any(to.node.output[1:3]):
        return False
    if centred and to.opset >= _LAYER_NORM:
        given = [x, scale, *([bias] if bias else [])]
        to.emit("LayerNormalization", *given, out=out, main=True, axis=-1, epsilon=epsilon)
        return True
    if not centred and to.opset >= _RMS_NORM:
        to.emit("RMSNormalization", x, scale, out=out, main=True, axis=-1, epsilon=epsilon)
        return True
    x = to.emit("Sub", x, to.mean(x)) if centred else x
    deviation = to.emit("Sqrt", to.emit("Add", to.mean(to.emit("Mul", x, x)), to.number(epsilon)))
    y = to.emit("Mul", to.emit("Div", x, deviation), scale, out="" if bias else out, main=True)
    if bias:
        to.emit("Add", y, bias, out=out)
    return True


def _layer_norm(to: _Spelling) -> bool:
    centred = to.node.op_type == "LayerNormalization"
    return _normalise(to, to.given(0), to.given(1), to.given(2) if centred else "", centred=centred)


def _skip_layer_norm(to: _Spelling) -> bool:
    centred = to.node.op_type == "SkipLayerNormalization"
    bias, total = to.given(4 if centred else 3), to.node.output[3] if len(to.node.output) > 3 else ""
    x = to.emit("Add", to.given(0), to.given(1), out="" if bias else total)
    x = to.emit("Add", x, bias, out=total) if bias else x
    return _normalise(to, x, to.given(2), to.given(3) if centred else "", centred=centred)


def _fused(to: _Spelling) -> bool:
    """A convolution or product and the activation behind it; a fourth input of a convolution is added before that."""
    text = to.attributes.get("activation", b"").decode()
    own = {k: v for k, v in to.attributes.items() if not k.startswith("activation")}
    parameters = to.attributes.get("activation_params", [])
    slopes = {"alpha": to.attributes.get("activation_alpha"), "beta": to.attributes.get("activation_beta")}
    slopes |= dict(zip(("alpha", "beta"), parameters, strict=False))
    if text and (text not in _ACTIVATIONS or (text == "Clip" and (len(parameters) != 2 or to.opset < 11))):
        return False
    added, out = to.given(3), to.node.output[0]
    op = to.node.op_type.removeprefix("Fused")
    given = [name for name in to.node.input[:3] if name]
    x = to.emit(op, *given, out="" if text or added else out, main=True, **own)
    x = to.emit("Add", x, added, out="" if text else out) if added else x
    if text == "Clip":
        to.emit("Clip", x, *(to.number(float(limit)) for limit in parameters), out=out)
    elif text:
        to.emit(text, x, out=out, **{name: slope for name, slope in slopes.items() if slope is not None})
    return True


_SPELLERS: dict[str, Callable[[_Spelling], bool]] = {
    "Gelu": _gelus, "BiasGelu": _gelus, "FastGelu": _gelus, "QuickGelu": _quick_gelu, "FusedConv": _fused, "FusedGemm": _fused,
    "LayerNormalization": _layer_norm, "SimplifiedLayerNormalization": _layer_norm,
    "SkipLayerNormalization": _skip_layer_norm, "SkipSimplifiedLayerNormalization": _skip_layer_norm,
}  # fmt: skip
