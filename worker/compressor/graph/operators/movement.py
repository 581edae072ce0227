"""Operators that only move data. Their channel rule is to be run themselves on tensors of channel labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, register
from worker.compressor.graph.walk import Walk


def _move(walk: Walk, node: Node) -> None:
    walk.move(node)


def _identity(call: Call) -> Any:
    return call.tensor(0)


def _identity_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0]


def _dropout(call: Call) -> Any:
    training = call.known(2)
    if call.has(2) and (training is None or training.any()):
        raise call.refuse("drops values at random, in training mode")
    # at inference it is the identity; the mask output does not exist then
    return (call.tensor(0), torch.ones_like(call.tensor(0), dtype=torch.bool)) if _gives_mask(call) else call.tensor(0)


def _gives_mask(call: Call) -> bool:
    return len(call.node.outputs) > 1 and call.node.outputs[1] != ""


def _reshape(call: Call) -> Any:
    x, target = call.tensor(0), call.ints(1)
    if not call.attribute("allowzero", 0):
        target = [x.size(i) if isinstance(size, int) and size == 0 else size for i, size in enumerate(target)]
    return torch.reshape(x, target)


def _reshape_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    target = [int(size) for size in arrays[1].tolist()]
    if not node.attributes.get("allowzero", 0):
        target = [arrays[0].shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return arrays[0].reshape(target)


def _flatten(call: Call) -> Any:
    x, rank = call.tensor(0), call.rank(0)
    axis = call.attribute("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if axis == 0:
        return torch.reshape(x, [1, -1])
    if axis == rank:
        return torch.reshape(x, [-1, 1])
    # flatten needs no batch size, so that the batch stays free
    flat = torch.flatten(x, axis)
    return flat if axis == 1 else torch.flatten(flat, 0, axis - 1)


def _call_axes(call: Call) -> list[int] | None:
    given = call.ints(1) if call.has(1) else call.attribute("axes")
    return None if given is None else list(given)


def _squeeze(call: Call) -> Any:
    axes, x, rank = _call_axes(call), call.tensor(0), call.rank(0)
    if axes is None:
        return torch.squeeze(x)  # every axis of length 1, at run time as in ONNX
    for axis in sorted((axis % rank for axis in axes), reverse=True):
        x = torch.squeeze(x, axis)
    return x


def _unsqueeze(call: Call) -> Any:
    axes = _call_axes(call) or []
    x, rank = call.tensor(0), call.rank(0) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = torch.unsqueeze(x, axis)
    return x


def _axes_known(node: Node, arrays: Sequence[np.ndarray]) -> list[int] | None:
    given = arrays[1].tolist() if len(arrays) > 1 else node.attributes.get("axes")
    return None if given is None else [int(axis) for axis in given]


def _squeeze_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    axes = _axes_known(node, arrays)
    return np.squeeze(arrays[0], None if axes is None else tuple(axes))


def _unsqueeze_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.expand_dims(arrays[0], tuple(_axes_known(node, arrays) or ()))


def _transpose(call: Call) -> Any:
    order = call.attribute("perm") or list(reversed(range(call.rank(0))))
    return torch.permute(call.tensor(0), list(order))


def _transpose_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.transpose(arrays[0], node.attributes.get("perm"))


def _concat(call: Call) -> Any:
    return torch.cat([call.tensor(slot) for slot in range(len(call.node.inputs))], call.attribute("axis"))


def _concat_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays, node.attributes["axis"])


def _concat_channels(walk: Walk, node: Node) -> None:
    walk.concatenate(node, node.attributes["axis"])


def _expand(call: Call) -> Any:
    x, target, rank = call.tensor(0), call.ints(1), call.rank(0)
    offset = len(target) - rank
    if offset < 0:
        target, offset = [1] * -offset + target, 0
    # a 1 in the target keeps what the tensor has; in torch -1 says so
    sizes = [-1 if i >= offset and isinstance(size, int) and size == 1 else size for i, size in enumerate(target)]
    return x.expand(sizes)


def _expand_known(node: Node, arrays: Sequence[np.ndarray]) -> np.ndarray:
    shape = np.broadcast_shapes(arrays[0].shape, tuple(int(size) for size in arrays[1].tolist()))
    return np.broadcast_to(arrays[0], shape)


def _reshape_rewrite(view: CutView, node: Node) -> Rewrites:
    # -1 and 0 go on meaning the right thing
    return lengths(view, node, 1, lambda size: size > 0)


def _expand_rewrite(view: CutView, node: Node) -> Rewrites:
    return lengths(view, node, 1, lambda size: size > 1)


def lengths(view: CutView, node: Node, slot: int, is_length: Callable[[int], bool]) -> Rewrites:
    """The lengths that a cut has made wrong: their axis was cut, or they are computed from an axis that was."""
    meant, target = view.numbers(node, slot), view.numbers_now(node, slot)
    if meant is None or target is None:
        return {}
    wanted = view.shape_wanted(node.outputs[0])[-len(meant) :] if meant else ()
    numbers = [
        length if is_length(before) and now != length else None
        for before, now, length in zip(meant, target, wanted, strict=True)
    ]
    return {} if all(number is None for number in numbers) else {slot: numbers}


register(
    Operator(
        op="Identity",
        versions=(1, 13, 14, 16, 19, 21, 23, 24, 25),
        run=_identity,
        channels=_move,
        known=_identity_known,
    )
)
register(Operator(op="Dropout", versions=(7, 10, 12, 13, 22), run=_dropout, channels=lambda w, n: w.keep(n), data=(0,)))
register(
    Operator(
        op="Reshape",
        versions=(5, 13, 14, 19, 21, 23, 24, 25),
        run=_reshape,
        channels=_move,
        rewrite=_reshape_rewrite,
        known=_reshape_known,
        data=(0,),
    )
)
register(Operator(op="Flatten", versions=(1, 9, 11, 13, 21, 23, 24, 25), run=_flatten, channels=_move))
register(
    Operator(
        op="Squeeze",
        versions=(1, 11, 13, 21, 23, 24, 25),
        run=_squeeze,
        channels=_move,
        known=_squeeze_known,
        data=(0,),
    )
)
register(
    Operator(
        op="Unsqueeze",
        versions=(1, 11, 13, 21, 23, 24, 25),
        run=_unsqueeze,
        channels=_move,
        known=_unsqueeze_known,
        data=(0,),
    )
)
register(
    Operator(op="Transpose", versions=(1, 13, 21, 23, 24, 25), run=_transpose, channels=_move, known=_transpose_known)
)
register(Operator(op="Concat", versions=(4, 11, 13), run=_concat, channels=_concat_channels, known=_concat_known))
register(
    Operator(
        op="Expand",
        versions=(8, 13),
        run=_expand,
        channels=_move,
        rewrite=_expand_rewrite,
        known=_expand_known,
        data=(0,),
    )
)
