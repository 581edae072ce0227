"""How numbers of many coupled weights become one number for each unit of a group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from worker.compressor.graph.channels.grouping import Group, Slice

A = TypeVar("A", np.ndarray, Tensor)
Combine = Literal["readers", "makers", "all"]
_ROLES = {"readers": ("consumes",), "makers": ("produces",), "all": ("consumes", "produces")}


def unit_sums(group: Group, arrays: Mapping[str, np.ndarray], combine: Combine, *, alike: bool = False) -> np.ndarray:
    """For each unit the sum over its slices of every matrix that reads it (makes it, or both), `[num_units]` in float64.

    Units that no matrix of that kind touches get what the others say. `alike`: each tensor is first divided by its mean
    over the units, so that all count alike. Vectors (biases) have another scale than the kernels beside them, and count
    nowhere; tensors that are missing in `arrays` neither.
    """
    found, touched = _sums(group, arrays, _ROLES[combine], alike)
    if touched.all():
        return found
    other, _ = _sums(group, arrays, _ROLES["all"], alike)
    return np.where(touched, found, other)


def _matrices(
    group: Group, arrays: Mapping[str, np.ndarray], roles: tuple[str, ...]
) -> Iterator[tuple[Slice, np.ndarray]]:
    """The group's slices in these roles whose tensor has two axes or more, with their arrays."""
    for part in group.slices:
        array = arrays.get(part.tensor)
        if part.role in roles and array is not None and array.ndim > 1:
            yield part, array


def pieces(part: Slice, array: A) -> Iterator[tuple[np.ndarray, A]]:
    """`(units, piece)`: each equal part of axis 0 has its own order of units along the axis; one part is the whole tensor."""
    units = np.atleast_2d(part.units)
    yield from zip(units, array.reshape(len(units), -1, *array.shape[1:]), strict=True)


def _by_unit(part: Slice, array: np.ndarray, num_units: int) -> np.ndarray:
    """The sum of a slice's numbers for each unit, `[num_units]`."""
    sums = np.zeros(num_units)
    for row, piece in pieces(part, array):
        other_axes = tuple(axis for axis in range(piece.ndim) if axis != part.axis)
        per_position = piece.sum(axis=other_axes, dtype=np.float64)
        owned = row >= 0
        np.add.at(sums, row[owned], per_position[owned])
    return sums


def _sums(
    group: Group, arrays: Mapping[str, np.ndarray], roles: tuple[str, ...], alike: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The sums, and for each unit whether any matrix touches it."""
    total, touched = np.zeros(group.num_units), np.zeros(group.num_units, bool)
    for part, array in _matrices(group, arrays, roles):
        sums = _by_unit(part, array, group.num_units)
        total += sums / sums.mean() if alike and sums.any() else sums
        touched[part.units[part.units >= 0]] = True
    return total, touched


def distances(group: Group, tensors: Mapping[str, np.ndarray], combine: Combine) -> np.ndarray:
    """For each unit the summed Euclidean distances to all others, `[num_units]`; each tensor counts alike."""
    total = np.zeros(group.num_units)
    for part, array in _matrices(group, tensors, _ROLES[combine]):
        for row, piece in pieces(part, array):
            total += _distances_in(row, np.moveaxis(piece, part.axis, 0).reshape(len(row), -1), group.num_units)
    return total


def _distances_in(row: np.ndarray, vectors: np.ndarray, num_units: int) -> np.ndarray:
    """Of one part of a tensor, whose position i along the cut axis is `vectors[i]`, of unit `row[i]`."""
    present, counts = np.unique(row[row >= 0], return_counts=True)
    if len(present) == 0 or counts.min() != counts.max():
        return np.zeros(num_units)
    order = np.argsort(row, kind="stable")[(row < 0).sum() :]
    points = vectors[order].astype(np.float64).reshape(len(present), -1)
    squares = np.square(points).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0.0)).sum(1)
    found = np.zeros(num_units)
    found[present] = apart / apart.mean() if apart.any() else apart
    return found
