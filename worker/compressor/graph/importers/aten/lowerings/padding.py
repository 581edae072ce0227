"""Padding: by a number, by reflection, by repetition, around."""

from __future__ import annotations

import onnx_ir as ir

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Free, Tensor, Unsupported, Value

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@lowers("pad")
def pad(to: Call, x: Tensor, pad: list[int | Free], mode: str = "constant", value: Value = None) -> Value:
    """Padding in any mode; torch counts from the last axis on."""
    if mode == "circular":
        return _around(to, x, pad)
    return _pad(to, x, pad, _MODES[mode], value)


@lowers("constant_pad_nd")
def pad_constant(to: Call, x: Tensor, pad: list[int | Free], value: Value = 0) -> Value:
    """Padding by a number."""
    return _pad(to, x, pad, "constant", value)


@lowers("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def pad_reflected(to: Call, x: Tensor, padding: list[int | Free]) -> Value:
    """Padding by reflection, the border itself left out."""
    return _pad(to, x, padding, "reflect", None)


@lowers("replication_pad1d", "replication_pad2d", "replication_pad3d")
def pad_repeated(to: Call, x: Tensor, padding: list[int | Free]) -> Value:
    """Padding by repetition of the border."""
    return _pad(to, x, padding, "edge", None)


def _pad(to: Call, x: Tensor, pads: list[int | Free], mode: str, value: Value) -> Value:
    if all(isinstance(number, int) and number == 0 for number in pads):
        return x
    lead = [0] * (x.rank - len(pads) // 2)
    begins, ends = lead + list(pads[::2])[::-1], lead + list(pads[1::2])[::-1]
    if mode == "reflect" and any(isinstance(number, int) and number < 0 for number in pads):
        raise Unsupported("reflects and crops at once")
    filling = None if mode != "constant" else to.build.scalar(value or 0, x.dtype)
    return to.emit("Pad", x, begins + ends, filling, mode=mode)


def _around(to: Call, x: Tensor, pads: list[int | Free]) -> ir.Value:
    """What goes over one border comes in at the other."""
    value = x.value
    for index in range(len(pads) // 2):
        axis, before, after = x.rank - 1 - index, pads[2 * index], pads[2 * index + 1]
        if not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
            raise Unsupported("pads around by numbers that are not fixed")
        parts = [value]
        if before:
            parts.insert(0, to.emit("Slice", value, [-before], [1 << 62], [axis]))
        if after:
            parts.append(to.emit("Slice", value, [0], [after], [axis]))
        value = to.emit("Concat", *parts, axis=axis) if len(parts) > 1 else value
    return value
