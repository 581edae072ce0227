"""Random channels for the engine, and what a peer that does not say it removed, read off the weights that are left."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from worker.compressor.graph.channels.analysis import Analysis

REMOVED = 0.3


def random_kept(analysis: Analysis, removed: float | None) -> dict[int, np.ndarray]:
    """Random units of the exact groups, as their partitions allow; None: every group at its narrowest."""
    rng = np.random.default_rng(1)
    groups = [group for group in analysis.groups if group.exact or removed is None]
    return {group.id: group.partition.draw(0.0 if removed is None else 1 - removed, rng) for group in groups}


def set_to_zero(model: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto | None:
    """The whole model with the inputs that `pruned` no longer has set to zero, in every layer that multiplies.

    None where a weight that is left is not a part of the weight of that name.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = constants(result)
    left = {name: numpy_helper.to_array(tensor) for name, tensor in constants(pruned).items()}
    for node in model.graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        axis = _read_axis(node)
        if axis is None or name not in tensors or name not in left:
            continue
        whole = numpy_helper.to_array(tensors[name]).copy()
        if whole.shape == left[name].shape:
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and whole.shape[1] == 1 and groups > 1:
            continue  # of each channel by itself: nothing is summed
        flags = _flags(whole, left[name], groups if node.op_type == "Conv" else 1)
        if flags is None:
            return None
        for part, (_, columns) in zip(np.split(whole, len(flags)), flags, strict=True):  # np.split gives views
            gone = columns if axis == 1 else flags[0][0]
            part[(slice(None),) * axis + (~gone,)] = 0
        tensors[name].CopyFrom(numpy_helper.from_array(whole, name))
    return result


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensors of a file by value name: its initializers, and what its Constant nodes hold."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return found


def _read_axis(node: onnx.NodeProto) -> int | None:
    """The axis of the weight that is summed over."""
    if node.op_type == "Gemm":
        return 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
    return {"Conv": 1, "ConvTranspose": 0, "MatMul": 0}.get(node.op_type)


def _flags(whole: np.ndarray, left: np.ndarray, groups: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """For each group of rows, which positions of axes 0 and 1 are left; None where `left` is not a part of `whole`."""
    if whole.ndim < 2 or left.ndim != whole.ndim or len(whole) % groups or len(left) % groups:
        return None
    found = []
    for before, now in zip(np.split(whole, groups), np.split(left, groups), strict=True):
        rows, columns = _positions(before, now)
        if not np.array_equal(before[np.ix_(rows, columns)], now):
            return None
        found.append((_marked(len(before), rows), _marked(before.shape[1], columns)))
    return found


def _positions(whole: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of `whole` that hold the numbers of `left`, by vote: some numbers occur more than once."""
    plane = whole.reshape(*whole.shape[:2], -1)[:, :, 0]
    asked = left.reshape(*left.shape[:2], -1)[:, :, 0]
    order = np.argsort(plane, axis=None, kind="stable")
    at = np.searchsorted(plane.reshape(-1)[order], asked.reshape(-1)).clip(max=plane.size - 1)
    rows, columns = np.divmod(order[at].reshape(asked.shape), plane.shape[1])
    return (
        np.array([np.bincount(row).argmax() for row in rows], np.int64),
        np.array([np.bincount(column).argmax() for column in columns.T], np.int64),
    )


def _marked(length: int, positions: np.ndarray) -> np.ndarray:
    flags = np.zeros(length, bool)
    flags[positions] = True
    return flags
