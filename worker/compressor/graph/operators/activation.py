"""Activations: one input, one output, each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.sizes import known_as
from worker.compressor.graph.unsigned import computed
from worker.compressor.graph.walk import Walk

_LARGEST = 3.4028234663852886e38  # of float32: the limits of Clip-6 where none is given


def _elementwise(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _unary(op: str, versions: tuple[int, ...], function: Callable[[Any], Any]) -> None:
    register(Operator(op=op, versions=versions, run=lambda call: function(call.tensor(0)), channels=_elementwise))


def _with(op: str, versions: tuple[int, ...], function: Callable[[Call, Any], Any]) -> None:
    register(Operator(op=op, versions=versions, run=lambda call: function(call, call.tensor(0)), channels=_elementwise))


def _clip(call: Call) -> Any:
    """Limits are attributes before opset 11, and inputs of one element since; where they cross, the upper one wins."""
    if call.node.since_version < 11:
        limits = [call.attribute("min", -_LARGEST), call.attribute("max", _LARGEST)]
    else:
        limits = [_limit(call, slot) for slot in (1, 2)]
    if all(limit is None for limit in limits):
        return call.tensor(0)
    if all(isinstance(limit, float) for limit in limits) and limits[0] <= limits[1]:
        return functional.hardtanh(call.tensor(0), *limits)  # one kernel backward, where clamp has four
    return computed(call, lambda x: _clamped(x, *limits), call.tensor(0), ordering=call.dtype(0) != torch.uint64)


def _clamped(x: Any, lowest: Any, highest: Any) -> Any:
    # one after the other, because torch does not take a tensor and a number (which may be a size) at once
    x = x if lowest is None else torch.clamp(x, min=lowest)
    return x if highest is None else torch.clamp(x, max=highest)


def _clip_known(node: Node, arrays: Sequence[np.ndarray]) -> Any:
    slots = [slot for slot, name in enumerate(node.inputs) if name]
    given = dict(zip(slots, arrays, strict=True))
    for slot, attribute in enumerate(("min", "max"), 1):
        if attribute in node.attributes:
            given[slot] = np.asarray(node.attributes[attribute], np.float32)
    x: Any = given[0]
    for slot, function in ((1, known_as(np.maximum, max)), (2, known_as(np.minimum, min))):
        x = function(node, [x, given[slot].reshape(())]) if slot in given else x
    return x


def _limit(call: Call, slot: int) -> Any:
    """A number (which may be the proxy of a size) where the limit is known, a tensor where it is data."""
    known = call.known(slot)
    return call.tensor(slot) if known is None else known.reshape(-1).tolist()[0]


def _gelu(call: Call) -> Any:
    return functional.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


def _hard_sigmoid(call: Call, x: Any) -> Any:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # torch has a kernel of its own for this slope
        return functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _elu(call: Call, x: Any) -> Any:
    return functional.elu(x, call.attribute("alpha", 1.0))


def _selu(call: Call, x: Any) -> Any:
    alpha = call.attribute("alpha", 1.6732632423543772)
    gamma = call.attribute("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, alpha)


def _thresholded(call: Call, x: Any) -> Any:
    return functional.threshold(x, call.attribute("alpha", 1.0), 0.0)


def _prelu(call: Call) -> Any:
    x, slope = call.tensor(0), call.known(1)
    if slope is not None and _is_per_channel(slope.shape, call.rank(0)):
        return functional.prelu(x, torch.flatten(call.tensor(1)))
    # max(x, 0) + slope * min(x, 0) broadcasts as ONNX does, which functional.prelu does not
    return torch.relu(x) - call.operand(1) * torch.relu(-x)


def _is_per_channel(slope: tuple[int, ...], rank: int) -> bool:
    """Whether the slopes lie along axis 1 alone, or are one."""
    return math.prod(slope) == 1 or (len(slope) == rank - 1 and math.prod(slope) == slope[0])


def _swish(call: Call, x: Any) -> Any:
    alpha = call.attribute("alpha", 1.0)
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


def _swiglu(call: Call) -> Any:
    return _swish(call, call.tensor(0)) * call.tensor(1)


def _shrink(call: Call, x: Any) -> Any:
    edge, bias = call.attribute("lambd", 0.5), call.attribute("bias", 0.0)
    if call.dtype(0).is_floating_point and bias in (0.0, edge):
        return functional.softshrink(x, edge) if bias else functional.hardshrink(x, edge)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, 0)).type_as(x)


def _prelu_channels(walk: Walk, node: Node) -> None:
    walk.join(node)


_unary("Relu", (6, 13, 14), torch.relu)
_unary("Sigmoid", (6, 13), torch.sigmoid)
_unary("Tanh", (6, 13), torch.tanh)
_unary("Softplus", (1, 22), functional.softplus)
_unary("Softsign", (1, 22), functional.softsign)
_unary("HardSwish", (14, 22), functional.hardswish)
_unary("Mish", (18, 22), functional.mish)
_with("LeakyRelu", (6, 16), lambda call, x: functional.leaky_relu(x, call.attribute("alpha", 0.01)))
_with("HardSigmoid", (6, 22), _hard_sigmoid)
_with("Elu", (6, 22), _elu)
_with("Selu", (6, 22), _selu)
_with("Celu", (12, 28), lambda call, x: functional.celu(x, call.attribute("alpha", 1.0)))
_with("ThresholdedRelu", (10, 22), _thresholded)
_with("Swish", (24,), _swish)
_with("Shrink", (9,), _shrink)
register(Operator(op="SwiGLU", versions=(28,), run=_swiglu, channels=lambda walk, node: walk.join(node)))
register(
    Operator(op="Clip", versions=(6, 11, 12, 13), run=_clip, channels=_elementwise, known=_clip_known, data=(0,)),
)
register(Operator(op="Gelu", versions=(20,), run=_gelu, channels=_elementwise))
register(
    Operator(op="PRelu", versions=(7, 9, 16), run=_prelu, channels=_prelu_channels, weights=(1,)),
)
