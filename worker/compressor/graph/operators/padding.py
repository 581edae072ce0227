"""Pad, and CenterCropPad: something put around a tensor, or less of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Int, Operator, register
from worker.compressor.graph.padding import torch_pads
from worker.compressor.graph.proxies import record
from worker.compressor.graph.walk import Walk

_NATIVE = {"reflect": "reflect", "edge": "replicate"}


def _pad(call: Call) -> Any:
    x, rank = call.tensor(0), call.rank(0)
    mode, pads = call.attribute("mode", "constant"), _pads(call)
    begins, ends = pads[:rank], pads[rank:]
    if mode == "constant":
        return functional.pad(x, torch_pads(_trimmed(pads)), "constant", _value(call))
    if mode not in ("reflect", "edge", "wrap"):
        raise call.refuse(f"pads by '{mode}'")
    padded = [axis for axis in range(rank) if not (_is_zero(begins[axis]) and _is_zero(ends[axis]))]
    if mode in _NATIVE and _is_spatial(padded, rank, pads) and call.dtype(0).is_floating_point:
        first = 1 if rank == 2 else 2
        return functional.pad(x, torch_pads([*begins[first:], *ends[first:]]), _NATIVE[mode])
    for axis in padded:
        x = torch.index_select(x, axis, _source(x, axis, begins[axis], ends[axis], mode))
    return x


def _pads(call: Call) -> list[Int]:
    """All begins, then all ends, for every axis."""
    rank = call.rank(0)
    pads = list(call.attribute("pads")) if call.node.since_version < 11 else call.ints(1)
    if not call.has(3):
        return pads
    axes = [axis % rank for axis in call.ints(3)]
    begins, ends = dict(zip(axes, pads[: len(axes)], strict=True)), dict(zip(axes, pads[len(axes) :], strict=True))
    return [begins.get(axis, 0) for axis in range(rank)] + [ends.get(axis, 0) for axis in range(rank)]


def _value(call: Call) -> Any:
    if call.moving:
        return 0
    if call.node.since_version < 11:
        return call.attribute("value", 0.0)
    if not call.has(2):
        return 0.0
    known = call.known(2)
    if known is None or known.dtype == object:
        raise call.refuse("takes the value that it pads with from data")
    return known.reshape(-1)[0].item() if known.size else 0.0


def _trimmed(pads: list[Int]) -> list[Int]:
    """Without the first axes that are not padded: torch pads from the last axis on."""
    half = len(pads) // 2
    while half > 1 and _is_zero(pads[0]) and _is_zero(pads[half]):
        pads = pads[1:half] + pads[half + 1 :]
        half -= 1
    return pads


def _is_spatial(padded: list[int], rank: int, pads: list[Int]) -> bool:
    """Whether torch takes these pads: axes after batch and channels, nothing negative."""
    first = 1 if rank == 2 else 2
    return rank in (2, 3, 4, 5) and min(padded, default=first) >= first and all(_is_natural(pad) for pad in pads)


def _is_zero(number: Int) -> bool:
    return isinstance(number, int) and number == 0


def _is_natural(number: Int) -> bool:
    return isinstance(number, int) and number >= 0


def _source(x: Any, axis: int, begin: Int, end: Int, mode: str) -> Any:
    """For each position of the padded axis the one that it repeats."""
    length = x.size(axis)
    positions = torch.arange(length + begin + end, device=x.device) - begin
    if mode == "edge":
        return torch.clamp(positions, 0, length - 1)
    if mode == "wrap":
        return torch.remainder(positions, length)
    return (length - 1) - torch.abs((length - 1) - torch.abs(positions))


def _pad_channels(walk: Walk, node: Node) -> None:
    rank = len(walk.shape(node.inputs[0]))
    pads = list(node.attributes["pads"]) if node.since_version < 11 else walk.numbers(node, 1)
    if pads is None:
        walk.pin(node, f"Pad '{node.name}' takes its widths from data")
        return
    axes = walk.numbers(node, 3) or list(range(rank))
    constant = node.attributes.get("mode", "constant") == "constant"
    widths = [(axis, pad) for axis, pad in zip([*axes, *axes], pads, strict=True) if pad]
    # what is repeated or taken away by position would be another channel after a cut
    fixed = {axis for axis, pad in widths if pad < 0 or not constant}
    if fixed:
        walk.close(node, sorted(fixed), f"Pad '{node.name}' repeats or removes channels by position")
    walk.move(node)


def _centre(call: Call) -> Any:
    x, rank = call.tensor(0), call.rank(0)
    sizes = call.ints(1)
    axes = [axis % rank for axis in call.attribute("axes", range(rank))]
    begins: list[Int] = [0] * rank
    ends: list[Int] = [0] * rank
    for axis, size in zip(axes, sizes, strict=True):
        more = size - x.size(axis)
        begins[axis] = record(half_of, more)
        ends[axis] = more - begins[axis]
    return functional.pad(x, torch_pads(begins + ends))


def half_of(number: int) -> int:
    """The half of a number, cut towards zero."""
    if number < 0:
        return -(-number // 2)
    return number // 2


def _centre_channels(walk: Walk, node: Node) -> None:
    before, after = walk.shape(node.inputs[0]), walk.shape(node.outputs[0])
    changed = [axis for axis, size in enumerate(before) if size != after[axis]]
    walk.keep(node, slides=changed)


register(Operator(op="Pad", versions=(2, 11, 13, 18, 19, 21, 23, 24, 25), run=_pad, channels=_pad_channels, data=(0,)))
register(Operator(op="CenterCropPad", versions=(18,), run=_centre, channels=_centre_channels, data=(0,)))
