"""One layer of channel labels on a value; see `labels`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The letters of the axes of one operand of a product: equal numbers are one axis.
Term = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Labels along some axes of a value: `array` has its rank, and length 1 off `axes`.

    `narrows` is the axis that gets shorter when labels go: of [groups, channels / groups] the second, wherever a
    transpose puts it. None: the last of `axes`.
    """

    array: np.ndarray
    axes: tuple[int, ...]
    narrows: int | None = None

    @property
    def narrowed(self) -> int:
        """The axis that gets shorter."""
        return self.axes[-1] if self.narrows is None else self.narrows

    def rows(self) -> np.ndarray:
        """The labels as (blocks, positions): each block must lose the same number."""
        return np.moveaxis(self.array, self.narrowed, -1).reshape(-1, self.array.shape[self.narrowed])

    @property
    def is_line(self) -> bool:
        """Whether the labels lie along one axis."""
        return len(self.axes) == 1

    def line(self) -> np.ndarray:
        """The labels along the only axis."""
        assert self.is_line
        return self.array.reshape(-1)


def layer_along(labels: np.ndarray, axis: int, rank: int) -> Layer:
    """A layer of these labels along one axis of a value of that rank."""
    shape = [1] * rank
    shape[axis] = len(labels)
    return Layer(labels.reshape(shape), (axis % rank,))


def raised(layer: Layer, rank: int) -> Layer:
    """The layer in a value of higher rank, axes aligned at the end as in broadcasting."""
    more = rank - layer.array.ndim
    if more == 0:
        return layer
    narrows = None if layer.narrows is None else layer.narrows + more
    return Layer(layer.array.reshape((1,) * more + layer.array.shape), tuple(a + more for a in layer.axes), narrows)


def are_one(a: Layer, b: Layer) -> bool:
    """Whether two layers at the same places are of the same channels: not where one lies along the blocks of the other."""
    if not a.axes or not b.axes:
        return False
    return a.narrowed == b.narrowed or (a.narrowed in b.axes and b.narrowed in a.axes)


def lettered(layer: Layer, term: Term, count: int) -> Layer:
    """The layer of an operand with one axis for each of `count` letters."""
    shape = [1] * count
    for axis, letter in enumerate(term):
        shape[letter] = layer.array.shape[axis]
    array = np.transpose(layer.array, np.argsort(term, kind="stable")).reshape(shape)
    return Layer(array, tuple(sorted(term[a] for a in layer.axes)), term[layer.narrowed])


def placed(layer: Layer, result: Term) -> Layer:
    """A layer with one axis per letter as one of the result, whose axes are those letters."""
    array = layer.array.transpose([*result, *(axis for axis in range(layer.array.ndim) if axis not in result)])
    array = array.reshape(array.shape[: len(result)])
    return Layer(array, tuple(sorted(result.index(a) for a in layer.axes)), result.index(layer.narrowed))


def rows_of(layer: Layer, shape: Sequence[int], offset: int) -> np.ndarray | None:
    """The labels as a constant of this (raised) shape carries them: one row per entry of its axis 0; None: one line."""
    blocks = [axis for axis in layer.axes if axis != layer.narrowed and shape[axis] > 1]
    return layer.rows() if blocks == [offset] and len(layer.axes) == 2 and shape[layer.narrowed] > 1 else None
