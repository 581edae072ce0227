"""Functions of one element: activations and the like."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Number, Tensor, Unsupported

_PLAIN = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs",
    "neg": "Neg", "negative": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sin": "Sin",
    "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "reciprocal": "Reciprocal", "sign": "Sign", "sgn": "Sign",
    "hardswish": "HardSwish", "isnan": "IsNaN", "isinf": "IsInf",
}  # fmt: skip


def _plain(op: str) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Tensor) -> ir.Value:
        keeps = to.out.dtype == torch.bool
        return to.emit(op, x.value if keeps else to.cast(x, to.out.dtype))

    return lower


for _name, _op in _PLAIN.items():
    lowers(_name)(_plain(_op))


def _times(to: Call, x: Tensor, factor: ir.Value) -> ir.Value:
    return to.emit("Mul", x, factor)


@lowers("rsqrt")
def inverse_root(to: Call, x: Tensor) -> ir.Value:
    """`1 / sqrt(x)`."""
    return to.emit("Reciprocal", to.emit("Sqrt", x))


@lowers("expm1")
def exponential_less_one(to: Call, x: Tensor) -> ir.Value:
    """`exp(x) - 1`."""
    return to.emit("Sub", to.emit("Exp", x), to.build.scalar(1.0, x.dtype))


@lowers("log1p")
def logarithm_of_one_more(to: Call, x: Tensor) -> ir.Value:
    """`log(1 + x)`."""
    return to.emit("Log", to.emit("Add", x, to.build.scalar(1.0, x.dtype)))


def _logarithm(base: float) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Tensor) -> ir.Value:
        return to.emit("Div", to.emit("Log", x), to.build.scalar(math.log(base), x.dtype))

    return lower


lowers("log2")(_logarithm(2.0))
lowers("log10")(_logarithm(10.0))


@lowers("silu")
def silu(to: Call, x: Tensor) -> ir.Value:
    """`x * sigmoid(x)`."""
    return _times(to, x, to.emit("Sigmoid", x))


@lowers("mish")
def mish(to: Call, x: Tensor) -> ir.Value:
    """`x * tanh(softplus(x))`."""
    return _times(to, x, to.emit("Tanh", to.emit("Softplus", x)))


@lowers("gelu")
def gelu(to: Call, x: Tensor, approximate: str = "none") -> ir.Value:
    """`x * Phi(x)`, by erf or by tanh."""
    half, one = to.build.scalar(0.5, x.dtype), to.build.scalar(1.0, x.dtype)
    if approximate == "none":
        inner = to.emit("Erf", to.emit("Div", x, to.build.scalar(math.sqrt(2.0), x.dtype)))
    else:
        cube = to.emit("Mul", to.emit("Mul", x, x), x)
        sum_ = to.emit("Add", x, to.emit("Mul", cube, to.build.scalar(0.044715, x.dtype)))
        inner = to.emit("Tanh", to.emit("Mul", sum_, to.build.scalar(math.sqrt(2.0 / math.pi), x.dtype)))
    return to.emit("Mul", _times(to, x, to.emit("Add", inner, one)), half)


@lowers("leaky_relu")
def leaky_relu(to: Call, x: Tensor, negative_slope: Number = 0.01) -> ir.Value:
    """Leaky ReLU."""
    return to.emit("LeakyRelu", x, alpha=float(negative_slope))


@lowers("elu")
def elu(to: Call, x: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> ir.Value:
    """ELU; with its scales, SELU."""
    if input_scale != 1:
        raise Unsupported("scales its input")
    made = to.emit("Elu", x, alpha=float(alpha))
    return made if scale == 1 else to.emit("Mul", made, to.build.scalar(scale, x.dtype))


@lowers("selu", "celu")
def selu(to: Call, x: Tensor, alpha: Number | None = None) -> ir.Value:
    """SELU, and CELU where there is an alpha."""
    if alpha is not None:
        return to.emit("Celu", x, alpha=float(alpha))
    return to.emit("Selu", x)


@lowers("relu6", "hardtanh")
def hardtanh(to: Call, x: Tensor, min_val: Number | None = None, max_val: Number | None = None) -> ir.Value:
    """A clip; ReLU6 is the one from 0 to 6."""
    low, high = (0.0, 6.0) if min_val is None or max_val is None else (min_val, max_val)
    return to.emit("Clip", x, to.build.scalar(low, x.dtype), to.build.scalar(high, x.dtype))


@lowers("hardsigmoid")
def hardsigmoid(to: Call, x: Tensor) -> ir.Value:
    """`clip(x / 6 + 1/2, 0, 1)`."""
    return to.emit("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)


@lowers("softplus")
def softplus(to: Call, x: Tensor, beta: Number = 1, threshold: Number = 20) -> ir.Value:
    """`log(1 + exp(beta x)) / beta`; torch's threshold only avoids overflow."""
    if beta == 1:
        return to.emit("Softplus", x)
    factor = to.build.scalar(beta, x.dtype)
    return to.emit("Div", to.emit("Softplus", to.emit("Mul", x, factor)), factor)


@lowers("softsign")
def softsign(to: Call, x: Tensor) -> ir.Value:
    """`x / (1 + |x|)`."""
    return to.emit("Softsign", x)


@lowers("log_sigmoid", "logsigmoid")
def log_sigmoid(to: Call, x: Tensor) -> ir.Value:
    """`-softplus(-x)`."""
    return to.emit("Neg", to.emit("Softplus", to.emit("Neg", x)))


@lowers("threshold")
def threshold(to: Call, x: Tensor, threshold: Number, value: Number) -> ir.Value:
    """The value where x is not above the threshold."""
    above = to.emit("Greater", x, to.build.scalar(threshold, x.dtype))
    return to.emit("Where", above, x, to.build.scalar(value, x.dtype))


@lowers("prelu", "_prelu_kernel")
def prelu(to: Call, x: Tensor, weight: Tensor) -> ir.Value:
    """PReLU; one slope per channel lies along axis 1."""
    slope = weight.value
    if weight.rank == 1 and x.rank > 2 and weight.size(0) != 1:
        slope = to.emit("Reshape", weight, [-1] + [1] * (x.rank - 2))
    return to.emit("PRelu", x, slope)


@lowers("glu")
def glu(to: Call, x: Tensor, dim: int = -1) -> ir.Value:
    """The first half times the sigmoid of the second."""
    first, second = to.emit("Split", x, axis=dim % x.rank, outputs=2)
    return to.emit("Mul", first, to.emit("Sigmoid", second))


@lowers("softmax", "_softmax")
def softmax(to: Call, x: Tensor, dim: int, dtype: object = None, half_to_float: bool = False) -> ir.Value:
    """Softmax along one axis."""
    return to.emit("Softmax", to.cast(x, to.out.dtype), axis=dim)


@lowers("log_softmax", "_log_softmax")
def log_softmax(to: Call, x: Tensor, dim: int, dtype: object = None, half_to_float: bool = False) -> ir.Value:
    """The logarithm of softmax along one axis."""
    return to.emit("LogSoftmax", to.cast(x, to.out.dtype), axis=dim)
