"""Activations: one input, one output, each element by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _elementwise(walk: Walk, node: Node) -> None:
    walk.keep(node)


def _unary(op: str, versions: tuple[int, ...], function: Callable[[Any], Any]) -> None:
    register(Operator(op=op, versions=versions, run=lambda call: function(call.tensor(0)), channels=_elementwise))


def _with(op: str, versions: tuple[int, ...], function: Callable[[Call, Any], Any]) -> None:
    register(Operator(op=op, versions=versions, run=lambda call: function(call, call.tensor(0)), channels=_elementwise))


def _bound(call: Call, slot: int, attribute: str) -> Any:
    """A limit of Clip: an attribute before opset 11, a known scalar since."""
    if call.node.since_version < 11:
        return call.attribute(attribute)
    if not call.has(slot):
        return None
    known = call.known(slot)
    if known is None or known.size != 1:
        raise call.refuse("takes its limits from data")
    return known.reshape(-1)[0].item()


def _clip(call: Call) -> Any:
    low, high = _bound(call, 1, "min"), _bound(call, 2, "max")
    if low is None and high is None:
        return call.tensor(0)
    return torch.clamp(call.tensor(0), low, high)


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
    # max(x, 0) + slope * min(x, 0) broadcasts as ONNX does, which functional.prelu does not
    x = call.tensor(0)
    return torch.relu(x) - call.operand(1) * torch.relu(-x)


def _prelu_channels(walk: Walk, node: Node) -> None:
    walk.join(node)


_unary("Relu", (6, 13, 14), torch.relu)
_unary("Sigmoid", (6, 13), torch.sigmoid)
_unary("Tanh", (6, 13), torch.tanh)
_unary("Erf", (9, 13), torch.erf)
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
register(Operator(op="Clip", versions=(6, 11, 12, 13), run=_clip, channels=_elementwise, data=(0,)))
register(Operator(op="Gelu", versions=(20,), run=_gelu, channels=_elementwise))
register(
    Operator(op="PRelu", versions=(7, 9, 16), run=_prelu, channels=_prelu_channels, weights=(1,)),
)
