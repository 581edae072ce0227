"""Elementwise arithmetic, comparison and logic, with torch's promotion of types."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Number, Tensor, Unsupported, Value


def _binary(op: str) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Value, other: Value) -> ir.Value:
        return to.emit(op, to.like(x, to.out.dtype), to.like(other, to.out.dtype))

    return lower


def _compare(op: str) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Value, other: Value) -> ir.Value:
        dtype = promoted(x, other)
        return to.emit(op, to.like(x, dtype), to.like(other, dtype))

    return lower


def _logic(op: str, on_numbers: bool) -> Callable[..., ir.Value]:
    def lower(to: Call, x: Value, other: Value) -> ir.Value:
        if to.out.dtype != torch.bool and not on_numbers:
            raise Unsupported("works on the bits of numbers")
        return to.emit(op, to.like(x, torch.bool), to.like(other, torch.bool))

    return lower


lowers("maximum", "max.other")(_binary("Max"))
lowers("minimum", "min.other")(_binary("Min"))
lowers("logical_and")(_logic("And", True))
lowers("logical_or")(_logic("Or", True))
lowers("logical_xor")(_logic("Xor", True))
lowers("bitwise_and", "__and__")(_logic("And", False))
lowers("bitwise_or", "__or__")(_logic("Or", False))
lowers("bitwise_xor", "__xor__")(_logic("Xor", False))
lowers("eq")(_compare("Equal"))
lowers("gt", "greater")(_compare("Greater"))
lowers("lt", "less")(_compare("Less"))
lowers("ge", "greater_equal")(_compare("GreaterOrEqual"))
lowers("le", "less_equal")(_compare("LessOrEqual"))


@lowers("ne", "not_equal")
def differs(to: Call, x: Value, other: Value) -> ir.Value:
    """Not equal."""
    dtype = promoted(x, other)
    return to.emit("Not", to.emit("Equal", to.like(x, dtype), to.like(other, dtype)))


@lowers("add")
def add(to: Call, x: Value, other: Value, alpha: Number = 1) -> ir.Value:
    """`x + alpha * other`."""
    return _sum(to, "Add", x, other, alpha)


@lowers("sub", "subtract")
def subtract(to: Call, x: Value, other: Value, alpha: Number = 1) -> ir.Value:
    """`x - alpha * other`."""
    return _sum(to, "Sub", x, other, alpha)


@lowers("rsub")
def subtract_from(to: Call, x: Value, other: Value, alpha: Number = 1) -> ir.Value:
    """`other - alpha * x`."""
    return _sum(to, "Sub", other, x, alpha)


def _sum(to: Call, op: str, a: Value, b: Value, alpha: Number) -> ir.Value:
    dtype = to.out.dtype
    if dtype == torch.bool:
        return to.emit("Or", to.like(a, dtype), to.like(b, dtype))
    second = to.like(b, dtype)
    if alpha != 1:
        second = to.emit("Mul", second, to.build.scalar(alpha, dtype))
    return to.emit(op, to.like(a, dtype), second)


@lowers("mul", "multiply")
def multiply(to: Call, x: Value, other: Value) -> ir.Value:
    """A product; of booleans, And."""
    op = "And" if to.out.dtype == torch.bool else "Mul"
    return to.emit(op, to.like(x, to.out.dtype), to.like(other, to.out.dtype))


@lowers("div", "divide", "true_divide")
def divide(to: Call, x: Value, other: Value, rounding_mode: str | None = None) -> ir.Value:
    """True division, or rounded down or towards zero."""
    a, b = to.like(x, to.out.dtype), to.like(other, to.out.dtype)
    if rounding_mode == "floor" and not to.out.dtype.is_floating_point:
        return _floor_of_whole(to, a, b)
    quotient = to.emit("Div", a, b)
    if rounding_mode is None or not to.out.dtype.is_floating_point:
        return quotient
    if rounding_mode == "floor":
        return to.emit("Floor", quotient)
    return to.emit("Mul", to.emit("Sign", quotient), to.emit("Floor", to.emit("Abs", quotient)))


@lowers("floor_divide", "__floordiv__")
def divide_down(to: Call, x: Value, other: Value) -> ir.Value:
    """Division rounded down."""
    return divide(to, x, other, "floor")


def _floor_of_whole(to: Call, a: ir.Value, b: ir.Value) -> ir.Value:
    """ONNX rounds whole quotients towards zero: `(a - mod(a, b)) / b`, whose remainder has the sign of b."""
    return to.emit("Div", to.emit("Sub", a, to.emit("Mod", a, b)), b)


@lowers("remainder")
def remainder(to: Call, x: Value, other: Value) -> ir.Value:
    """The remainder with the sign of the divisor: `x - floor(x / other) * other`."""
    a, b = to.like(x, to.out.dtype), to.like(other, to.out.dtype)
    if not to.out.dtype.is_floating_point:
        return to.emit("Mod", a, b)
    return to.emit("Sub", a, to.emit("Mul", to.emit("Floor", to.emit("Div", a, b)), b))


@lowers("fmod")
def fmod(to: Call, x: Value, other: Value) -> ir.Value:
    """The remainder with the sign of the dividend."""
    return to.emit("Mod", to.like(x, to.out.dtype), to.like(other, to.out.dtype), fmod=1)


@lowers("pow", "float_power")
def power(to: Call, x: Value, exponent: Value) -> ir.Value:
    """A power; squares are products."""
    dtype = to.out.dtype
    if exponent == 2 and isinstance(x, Tensor):
        base = to.cast(x, dtype)
        return to.emit("Mul", base, base)
    if exponent == 0.5:
        return to.emit("Sqrt", to.like(x, dtype))
    return to.emit("Pow", to.like(x, dtype), to.like(exponent, dtype))


@lowers("square")
def square(to: Call, x: Tensor) -> ir.Value:
    """The square."""
    return to.emit("Mul", x, x)


@lowers("addcmul")
def add_scaled_product(to: Call, x: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number = 1) -> Value:
    """`x + value * tensor1 * tensor2`."""
    return to.aten("add.Tensor", x, to.aten("mul.Tensor", tensor1, tensor2), alpha=value)


@lowers("addcdiv")
def add_scaled_quotient(to: Call, x: Tensor, tensor1: Tensor, tensor2: Tensor, value: Number = 1) -> Value:
    """`x + value * tensor1 / tensor2`."""
    return to.aten("add.Tensor", x, to.aten("div.Tensor", tensor1, tensor2), alpha=value)


@lowers("lerp")
def interpolate(to: Call, x: Tensor, end: Tensor, weight: Value) -> Value:
    """`x + weight * (end - x)`."""
    overload = "Tensor" if isinstance(weight, Tensor) else "Scalar"
    return to.aten("add.Tensor", x, to.aten(f"mul.{overload}", to.aten("sub.Tensor", end, x), weight))


@lowers("logical_not", "bitwise_not")
def negate(to: Call, x: Tensor) -> ir.Value:
    """Not, of what is true where it is not 0."""
    if to.out.dtype != torch.bool:
        raise Unsupported("works on the bits of numbers")
    return to.emit("Not", to.cast(x, torch.bool))


@lowers("where")
def where(to: Call, condition: Tensor, x: Value = None, other: Value = None) -> ir.Value:
    """One or the other, by element."""
    if x is None or other is None:
        raise Unsupported("makes as many elements as its data say")
    dtype = to.out.dtype
    return to.emit("Where", to.cast(condition, torch.bool), to.like(x, dtype), to.like(other, dtype))


@lowers("masked_fill")
def fill_where(to: Call, x: Tensor, mask: Tensor, value: Value) -> ir.Value:
    """The value where the mask is true."""
    dtype = to.out.dtype
    return to.emit("Where", to.cast(mask, torch.bool), to.like(value, dtype), to.cast(x, dtype))


@lowers("clamp", "clip")
def clamp(to: Call, x: Tensor, min: Value = None, max: Value = None) -> ir.Value:
    """Between two bounds, each of them optional."""
    dtype = to.out.dtype
    bounds = [None if bound is None else to.like(bound, dtype) for bound in (min, max)]
    if any(isinstance(bound, Tensor) for bound in (min, max)):
        low = to.cast(x, dtype) if bounds[0] is None else to.emit("Max", to.cast(x, dtype), bounds[0])
        return low if bounds[1] is None else to.emit("Min", low, bounds[1])
    return to.emit("Clip", to.cast(x, dtype), *bounds)


@lowers("clamp_min")
def clamp_below(to: Call, x: Tensor, min: Value) -> ir.Value:
    """Not below."""
    return clamp(to, x, min=min)


@lowers("clamp_max")
def clamp_above(to: Call, x: Tensor, max: Value) -> ir.Value:
    """Not above."""
    return clamp(to, x, max=max)


def promoted(a: Value, b: Value) -> torch.dtype:
    """The dtype in which torch compares two operands."""

    def stand_in(value: Value) -> torch.Tensor | Number:
        if isinstance(value, Tensor):
            return value.trials[0]
        return value.trials[0] if isinstance(value, Free) else value

    return torch.result_type(stand_in(a), stand_in(b))
