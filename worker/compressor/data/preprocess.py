"""From stored rows to what the network takes, batch by batch: `(float32(x) * scale - mean) / std`, or a cast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.spec.inputs import Preprocess
from worker.compressor.errors import InputMismatch


@dataclass(frozen=True)
class Preparation:
    """How the rows of one input are prepared; without a `recipe` they are cast to the input's dtype."""

    name: str
    dtype: str
    recipe: Preprocess | None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows `[N, …]` as the network takes them, a fresh C-contiguous array."""
        if self.recipe is None:
            return np.ascontiguousarray(rows.astype(_numpy_dtype(self.dtype)))
        mean, std = (self._per_channel(values, rows.ndim) for values in (self.recipe.mean, self.recipe.std))
        prepared = np.ascontiguousarray(rows, dtype=np.float32) * np.float32(self.recipe.scale)
        prepared -= mean
        prepared /= std
        return np.ascontiguousarray(prepared.astype(_numpy_dtype(self.dtype), copy=False))

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse means and deviations that do not fit the channels of rows of this shape `[N, …]`."""
        if self.recipe is None:
            return
        for key, values in (("mean", self.recipe.mean), ("std", self.recipe.std)):
            axis = self._axis(len(shape))
            if len(values) > 1 and (len(shape) < 2 or shape[axis] != len(values)):
                detail = f"preprocess.{key} of {self.name!r} has {len(values)} values, its samples have the shape {list(shape[1:])}"
                raise InputMismatch(
                    detail, code="invalid_preprocess", hint="one value per channel, or one for all; see `layout`"
                )

    def _axis(self, rank: int) -> int:
        is_last = self.recipe is not None and self.recipe.layout == "NHWC"
        return rank - 1 if is_last else min(1, rank - 1)

    def _per_channel(self, values: list[float], rank: int) -> np.ndarray:
        shape = [1] * rank
        shape[self._axis(rank)] = len(values)
        return np.asarray(values, np.float32).reshape(shape)


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
