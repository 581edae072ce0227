"""What every data set must satisfy before a job may use it: equal lengths, rows, finite values, sound labels.

Runs once, when the file is uploaded, over all its bytes and in bounded memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from app.spec.fields import LABEL_NAMES, count_splits, split_name
from worker.compressor.data.stored import StoredArray
from worker.compressor.errors import DataError


def describe(arrays: list[StoredArray]) -> dict[str, Any]:
    """The facts of a sound data set: `{fields: [{name, dtype, shape}], splits: {train, val, test}, num_classes}`.

    `num_classes` is one more than the largest class number, None without class numbers.

    Raises:
        DataError: `length_mismatch`, `too_small`, `non_finite`, `invalid_labels`, `truncated`.
    """
    _check_lengths(arrays)
    for array in arrays:
        _check_values(array)
    fields = [{"name": a.name, "dtype": a.dtype, "shape": list(a.shape)} for a in arrays]
    sizes = [size for a in arrays if _is_label(a) and (size := check_labels(a.name, a.array())) is not None]
    return {"fields": fields, "splits": count_splits(fields), "num_classes": max(sizes, default=None)}


def check_labels(name: str, labels: np.ndarray) -> int | None:
    """One more than the largest class number of an integer vector; None for real-valued targets.

    Raises:
        DataError: `invalid_labels` for negative, one-hot or column-shaped class numbers.
    """
    if labels.ndim == 2 and labels.shape[1] > 1 and _is_one_hot(labels):
        hint = "store class numbers: y.argmax(axis=1)"
        raise DataError(f"the labels {name!r} are one-hot rows", code="invalid_labels", hint=hint)
    if labels.dtype.kind not in "iub":
        return None
    if labels.ndim == 2 and labels.shape[1] == 1:
        detail = f"the labels {name!r} have the shape {list(labels.shape)}; class numbers are a vector"
        raise DataError(detail, code="invalid_labels", hint="store y.reshape(-1)")
    if labels.ndim != 1:
        return None
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0:
        first = int(np.argmax(labels < 0))
        detail = f"the labels {name!r} hold {int((labels < 0).sum())} negative class numbers, the first at row {first}"
        raise DataError(detail, code="invalid_labels", hint="number the classes from 0")
    return largest + 1


def _is_label(array: StoredArray) -> bool:
    return split_name(array.name)[0] in LABEL_NAMES


def _is_one_hot(labels: np.ndarray) -> bool:
    # A sample decides for real-valued targets, so that a large array is not compared whole for nothing.
    for rows in (labels[:64], labels):
        if not (((rows == 0) | (rows == 1)).all() and (rows.astype(np.int64).sum(axis=1) == 1).all()):
            return False
    return True


def _check_lengths(arrays: list[StoredArray]) -> None:
    by_split: dict[str, dict[str, int]] = {}
    for array in arrays:
        if array.shape:
            by_split.setdefault(split_name(array.name)[1], {})[array.name] = array.shape[0]
    for lengths in by_split.values():
        if empty := next((name for name, rows in lengths.items() if rows == 0), None):
            raise DataError(f"the array {empty!r} has no rows", code="too_small")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {rows}" for name, rows in list(lengths.items())[:8])
            detail = f"arrays that belong together have different numbers of rows: {told}"
            raise DataError(detail, code="length_mismatch", hint="one row per sample in every array of a split")
    if not by_split:
        raise DataError("the data set holds no rows", code="too_small")


def _check_values(array: StoredArray) -> None:
    """Read every byte (which proves that they are there), and refuse NaN and infinity."""
    bad, first, at = 0, -1, 0
    for block in array.blocks():
        if block.dtype.kind == "f":
            wrong = ~np.isfinite(block)
            if wrong.any():
                first = at + int(np.argmax(wrong)) if first < 0 else first
                bad += int(wrong.sum())
        at += len(block)
    if bad:
        code = "invalid_labels" if _is_label(array) else "non_finite"
        where = list(array.index_of(first))
        raise DataError(
            f"the array {array.name!r} holds {bad} values that are NaN or infinite, the first at {where}", code=code
        )
