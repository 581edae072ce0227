"""Arrays that one process keeps for another: `.npz`, with bfloat16 as the bits that numpy can store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

_MARK = ".bfloat16"


def keep_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name."""
    plain = {
        f"{name}{_MARK}" if array.dtype.name == "bfloat16" else name: array.view(np.uint16)
        if array.dtype.name == "bfloat16"
        else array
        for name, array in arrays.items()
    }
    np.savez(path, **plain)  # type: ignore[arg-type]


def kept_arrays(path: Path, prefix: str) -> tuple[np.ndarray, ...]:
    """The arrays whose names begin so, in the order of their names."""
    with np.load(path, allow_pickle=False) as kept:
        names = sorted(name for name in kept.files if name.startswith(prefix))
        return tuple(_read(name, kept[name]) for name in names)


def _read(name: str, array: np.ndarray) -> np.ndarray:
    if not name.endswith(_MARK):
        return array
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)
