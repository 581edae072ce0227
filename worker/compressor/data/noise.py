"""Seeded noise in the place of samples, where a job has no data: enough for proof, parity and timing, not for recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.spec.inputs import InputSignature
from worker.compressor.data.dataset import Dataset, Rows
from worker.compressor.data.preprocess import Preparation

NUM_ROWS = 64


def noise_dataset(inputs: Sequence[InputSignature], shapes: Mapping[str, tuple[int, ...]], seed: int) -> Dataset:
    """Rows of the signature's shapes: normal values; 0 and 1 for whole numbers, which every embedding knows."""
    rng = np.random.default_rng([seed, 4])
    arrays = []
    for entry in inputs:
        shape = (NUM_ROWS, *shapes[entry.name][1:])
        is_float = entry.dtype.startswith(("float", "bfloat"))
        arrays.append(rng.standard_normal(shape, np.float32) if is_float else rng.integers(0, 2, shape))
    preparations = tuple(Preparation(entry.name, entry.dtype, None) for entry in inputs)
    rows = Rows("noise", tuple(arrays), None, np.arange(NUM_ROWS), preparations)
    return Dataset(rows, rows, rows)
