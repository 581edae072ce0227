"""Padding as ONNX says it (begins, then ends; or by name) and as torch wants it."""

from __future__ import annotations

from typing import Any

from worker.compressor.graph.operator import Call, Int


def spatial_pads(call: Call, x: Any, kernel: list[int], strides: list[int], dilations: list[int]) -> list[Int]:
    """The padding in ONNX order (all begins, then all ends), `auto_pad` resolved for the input's size."""
    mode = call.attribute("auto_pad", "NOTSET")
    num_axes = len(kernel)
    if mode == "NOTSET":
        return list(call.attribute("pads", [0] * 2 * num_axes))
    if mode == "VALID":
        return [0] * 2 * num_axes
    begins, ends = [], []
    for axis in range(num_axes):
        total = same_padding(call, x.size(2 + axis), kernel[axis], strides[axis], dilations[axis])
        less = total // 2
        begins.append(less if mode == "SAME_UPPER" else total - less)
        ends.append(total - less if mode == "SAME_UPPER" else less)
    return begins + ends


def same_padding(call: Call, size: Int, kernel: int, stride: int, dilation: int) -> Int:
    """Padding with which the output has ceil(size / stride) entries: a number for stride 1, else from the size."""
    extent = (kernel - 1) * dilation + 1
    if stride == 1:
        return extent - 1
    if extent == 1:
        return 0
    if extent < stride and not isinstance(size, int):
        raise call.refuse("pads to SAME with a kernel smaller than its stride and a free size")
    needed = extent - 1 - (size - 1) % stride  # equals max((ceil(size / stride) - 1) * stride + extent - size, 0)
    return needed if extent >= stride else max(needed, 0)


def torch_pads(pads: list[Int]) -> list[Int]:
    """ONNX padding (begins, ends) as `functional.pad` wants it: last axis first, begin and end of each."""
    half = len(pads) // 2
    return [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[half + axis])]


def symmetric(pads: list[Int]) -> bool:
    """Whether begin and end are the same known numbers on every axis."""
    half = len(pads) // 2
    return all(isinstance(pad, int) and pad >= 0 for pad in pads) and pads[:half] == pads[half:]
