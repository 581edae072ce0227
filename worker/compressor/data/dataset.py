"""A data set as a job uses it: three splits of rows, prepared batch by batch.

Figures come from `test` alone; choices made on the way from `val`; training, refit and statistics see `train`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.spec.fields import ALL, FieldsMismatch, Roles, assign_roles
from app.spec.schema import Spec
from worker.compressor.data.checks import check_labels
from worker.compressor.data.formats import open_arrays
from worker.compressor.data.preprocess import Preparation
from worker.compressor.data.stored import StoredArray
from worker.compressor.errors import DataError, InputMismatch

# Below this, a tenth or a fifth would be a handful of rows, and a figure from it noise.
MIN_ROWS_TO_SPLIT = 50
TEST_SHARE, VAL_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Rows:
    """Some rows of some arrays: `arrays` as stored, in the order of the network's inputs; `index` picks and orders them.

    `split` names the arrays that the rows are of (train, val, test or all, as stored).
    """

    split: str
    arrays: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    index: np.ndarray
    preparations: tuple[Preparation, ...]

    def __len__(self) -> int:
        return len(self.index)

    def feeds(self, positions: np.ndarray | slice) -> tuple[np.ndarray, ...]:
        """The prepared inputs of these positions, one array `[N, …]` per input."""
        rows = self.index[positions]
        return tuple(prepare(array[rows]) for prepare, array in zip(self.preparations, self.arrays, strict=True))

    def targets(self, positions: np.ndarray | slice = slice(None)) -> np.ndarray | None:
        """The labels of these positions."""
        return None if self.labels is None else np.asarray(self.labels[self.index[positions]])

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, ...]]:
        """All rows in order, `size` at a time (the last may be shorter)."""
        for at in range(0, len(self), size):
            yield self.feeds(slice(at, at + size))

    def sample(self, count: int, rng: np.random.Generator) -> Rows:
        """`count` rows drawn without replacement, in their order here; all of them where there are no more."""
        if count >= len(self):
            return self
        return replace(self, index=self.index[np.sort(rng.choice(len(self), count, replace=False))])


@dataclass(frozen=True)
class Dataset:
    """The three splits; they are the same rows where there were too few to split (`warnings` says so)."""

    train: Rows
    val: Rows
    test: Rows
    warnings: tuple[str, ...] = ()

    @property
    def is_val_learnt(self) -> bool:
        """Whether the rows that choices are made on are training rows, which the network has most likely learnt."""
        return self.val.split == self.train.split

    @property
    def is_labelled(self) -> bool:
        """Whether every split has labels."""
        return all(rows.labels is not None for rows in (self.train, self.val, self.test))


def load_dataset(path: Path, data_format: str, spec: Spec) -> Dataset:
    """Open a data set and split it by `spec.seed`; `spec.inputs` names the network's inputs.

    Raises:
        DataError: where the file is damaged, or its labels are not what the task needs.
        InputMismatch: where its arrays do not fit the network's inputs.
    """
    assert spec.inputs is not None
    stored = {array.name: array for array in open_arrays(path, data_format)}
    try:
        roles = assign_roles(list(stored), [entry.name for entry in spec.tensors])
    except FieldsMismatch as error:
        raise InputMismatch(str(error)) from None
    preparations = tuple(Preparation(e.name, e.dtype, spec.preprocess_of(e.name)) for e in spec.tensors)
    rows = {split: _rows(stored, roles, split, preparations) for split in roles.splits}
    _check_task(rows, spec)
    dataset = _split(rows, np.random.default_rng([spec.seed, 1]))
    if spec.evaluation.max_samples is not None:
        sampled = dataset.test.sample(spec.evaluation.max_samples, np.random.default_rng([spec.seed, 2]))
        dataset = replace(dataset, test=sampled)
    return dataset


def _rows(stored: dict[str, StoredArray], roles: Roles, split: str, preparations: tuple[Preparation, ...]) -> Rows:
    arrays = []
    for preparation in preparations:
        array = stored[roles.inputs[preparation.name][split]]
        if not array.shape:
            raise InputMismatch(f"the array {array.name!r} is a single number; inputs have one row per sample")
        preparation.check(array.shape)
        arrays.append(array.array())
    labels = stored[roles.labels[split]].array() if split in roles.labels else None
    lengths = {len(a) for a in arrays} | ({len(labels)} if labels is not None else set())
    if len(lengths) > 1:
        raise DataError(f"the arrays of the split {split!r} have different numbers of rows", code="length_mismatch")
    return Rows(split, tuple(arrays), labels, np.arange(lengths.pop()), preparations)


def _check_task(rows: dict[str, Rows], spec: Spec) -> None:
    if spec.task != "classification":
        return
    labels = [part.labels for part in rows.values() if part.labels is not None]
    for values in labels:
        if values.dtype.kind not in "iub" or values.ndim != 1:
            found = f"{values.dtype.name} of shape {list(values.shape)}"
            detail = f"classification needs a vector of class numbers; the labels are {found}"
            raise DataError(detail, code="invalid_labels", hint="store integers from 0, or set task: regression")
        check_labels("y", values)
    if labels and len({int(c) for values in labels for c in np.unique(values)}) == 1:
        raise DataError("all labels name the same class: nothing can be told apart", code="invalid_labels")


def _split(rows: dict[str, Rows], rng: np.random.Generator) -> Dataset:
    train, val, test = rows.get("train", rows.get(ALL)), rows.get("val"), rows.get("test")
    if train is None:
        # Only held-out rows came: there is nothing to hold them out from.
        pool = val or test
        assert pool is not None
        warning = "the data set has no training rows; the rows that it has serve for everything"
        return Dataset(pool, pool, test or pool, (warning,))
    shared = []
    if test is None:
        train, test = _hold_out(train, TEST_SHARE, rng)
        shared += ["report"] * (test is train)
    if val is None:
        train, val = _hold_out(train, VAL_SHARE, rng)
        shared += ["choose"] * (val is train)
    warning = f"{len(train)} rows are too few to split: the same rows serve to train and to {' and to '.join(shared)}"
    return Dataset(train, val, train if "report" in shared else test, (warning,) if shared else ())


def _hold_out(rows: Rows, share: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """(the rest, the held-out rows); the same rows twice where there are too few."""
    if len(rows) < MIN_ROWS_TO_SPLIT:
        return rows, rows
    order = rng.permutation(len(rows))
    count = round(len(rows) * share)
    return (
        replace(rows, index=np.sort(rows.index[order[count:]])),
        replace(rows, index=np.sort(rows.index[order[:count]])),
    )
