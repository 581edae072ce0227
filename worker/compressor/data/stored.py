"""One array inside a data-set file: known by its header, read in blocks or mapped, never unpickled."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worker.compressor.errors import DataError

MAX_DIMENSION = 1 << 31
MAX_ARRAY_BYTES = 1 << 42
MAX_RANK = 16
MAX_NAME = 255
BLOCK_BYTES = 4 << 20
NUMERIC_KINDS = "biuf"


@dataclass(frozen=True)
class StoredArray(ABC):
    """Name, dtype and shape as the file declares them (checked against its bytes), and ways to the values.

    `stored_dtype` is the layout of the bytes; `dtype` the name that clients see (they differ for bfloat16).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    fortran_order: bool

    @abstractmethod
    def array(self) -> np.ndarray:
        """The whole array, mapped from the file where its bytes lie there as they are; read-only."""

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """The values as flat blocks in storage order, at most `BLOCK_BYTES` each; raises `DataError` on damage."""

    @property
    def order(self) -> Literal["C", "F"]:
        """Storage order: `C` runs along the last axis, `F` along the first."""
        return "F" if self.fortran_order else "C"

    @property
    def num_elements(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return self.num_elements * self.stored_dtype.itemsize

    def index_of(self, position: int) -> tuple[int, ...]:
        """The index of the value at a flat position in storage order."""
        return tuple(int(i) for i in np.unravel_index(position, self.shape, order=self.order))


def check_shape(name: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse shapes that no array can have, before anything is allocated for them."""
    if len(shape) > MAX_RANK or any(not 0 <= size < MAX_DIMENSION for size in shape):
        raise DataError(f"the array {name!r} declares a shape that no array has: {shape_text(shape)}")
    if math.prod(shape) * itemsize > MAX_ARRAY_BYTES:
        raise DataError(f"the array {name!r} declares {shape_text(shape)}, which is more than any array here may hold")


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as text of bounded length."""
    text = " × ".join(str(size)[:24] for size in shape[:8]) or "()"
    return text + (" × …" if len(shape) > 8 else "")


def check_name(name: str) -> str:
    """The name of an array, refused where it cannot be shown or matched."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise DataError("an array has an empty, overlong or unprintable name", code="wrong_format")
    return name


def map_bytes(path: Path, offset: int, array: StoredArray) -> np.ndarray:
    """The array's bytes in the file, mapped read-only."""
    if array.num_elements == 0:
        return np.zeros(array.shape, array.stored_dtype)
    return np.memmap(path, array.stored_dtype, "r", offset, shape=array.shape, order=array.order)
