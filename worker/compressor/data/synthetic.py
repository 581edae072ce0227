"""Synthesised rows in the place of samples, kept beside the request so that every process of an attempt has the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.spec.inputs import InputSignature
from worker.compressor.data.dataset import Dataset, Rows
from worker.compressor.data.preprocess import Preparation
from worker.compressor.evaluation.kept import keep_arrays, kept_arrays

#: The share of the rows that is held out to judge on.
HELD_OUT = 0.25


def synthetic_file(folder: Path) -> Path:
    """Where the rows of an attempt are, if it has any."""
    return folder / "synthetic.npz"


def keep_synthetic(folder: Path, arrays: Sequence[np.ndarray]) -> None:
    """Write the rows, one array per input in the network's order."""
    keep_arrays(synthetic_file(folder), {f"input{number:04d}": array for number, array in enumerate(arrays)})


def synthetic_dataset(folder: Path, inputs: Sequence[InputSignature]) -> Dataset:
    """The rows that were written: those to judge on are not among those to repair on."""
    arrays = kept_arrays(synthetic_file(folder), "input")
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    preparations = tuple(Preparation(entry.name, entry.dtype, None) for entry in inputs)
    count = len(arrays[0])
    num_held_out = max(1, round(count * HELD_OUT))
    # What the original answers is kept by split, also for other jobs, whose rows may be others.
    train, held_out = (
        Rows(f"synthetic-{digest[:12]}", arrays, None, index, preparations)
        for index in (np.arange(num_held_out, count), np.arange(num_held_out))
    )
    return Dataset(train, held_out, held_out)
