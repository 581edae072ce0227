"""Which array of a data set plays which part: inputs, labels, and the split that a suffix names.

Arrays are named like the model's inputs, or `x`/`inputs` where there is one; labels are `y`/`labels`. Any name may end in
`_train`, `_val` or `_test`; without a suffix the rows are split later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "val", "test")
ALL = "all"
LABEL_NAMES = ("y", "labels")
INPUT_NAMES = ("x", "inputs")


class FieldsMismatch(ValueError):
    """The arrays of a data set do not fit the inputs of the network; the message names both sides."""


@dataclass(frozen=True)
class Roles:
    """`inputs[input name][split]` and `labels[split]` are array names; `split` is train, val, test or all."""

    inputs: dict[str, dict[str, str]]
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the inputs have, in the order train, val, test, all."""
        present = {split for arrays in self.inputs.values() for split in arrays}
        return tuple(split for split in (*SPLITS, ALL) if split in present)


def split_name(name: str) -> tuple[str, str]:
    """`x_train` is (`x`, `train`); a name without a suffix belongs to `all`."""
    base, _, suffix = name.rpartition("_")
    return (base, suffix) if base and suffix in SPLITS else (name, ALL)


def base_names(names: list[str]) -> list[str]:
    """The names without their suffixes, once each, labels left out, in the order of the file."""
    return [base for base in dict.fromkeys(split_name(name)[0] for name in names) if base not in LABEL_NAMES]


def assign_roles(names: list[str], inputs: list[str] | None) -> Roles:
    """Find the array of each input, by name, or by the neutral names where there is one input.

    `inputs` are the network's input names; None takes every array that is not a label, by position.
    Raises `FieldsMismatch` where an input has no array, or where the splits of the inputs differ.
    """
    arrays: dict[str, dict[str, str]] = {}
    for name in names:
        # An array that carries an input's own name is that input, whatever its name ends in.
        base, split = (name, ALL) if inputs and name in inputs else split_name(name)
        arrays.setdefault(base, {})[split] = name
    wanted = inputs if inputs is not None else base_names(names)
    found: dict[str, dict[str, str]] = {}
    for name in wanted:
        candidates = (name, *INPUT_NAMES) if len(wanted) == 1 else (name,)
        base = next((candidate for candidate in candidates if candidate in arrays), "")
        if not base:
            raise FieldsMismatch(f"no array for the input {name!r}; the data set holds {', '.join(names) or 'nothing'}")
        found[name] = arrays[base]
    if not found:
        raise FieldsMismatch("the data set holds no input array")
    first = next(iter(found.values()))
    for name, splits in found.items():
        if splits.keys() != first.keys():
            raise FieldsMismatch(
                f"the input {name!r} has other splits ({', '.join(splits)}) than the first ({', '.join(first)})"
            )
    labels = next((arrays[name] for name in LABEL_NAMES if name in arrays and name not in found), {})
    return Roles(found, {split: name for split, name in labels.items() if split in first})


def count_splits(fields: list[dict[str, Any]]) -> dict[str, int]:
    """Rows of each split, read off the input arrays: `{"train": 1400, "test": 397}`; unsplit rows count as train."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for row in fields:
        base, split = split_name(row["name"])
        if base not in LABEL_NAMES and row["shape"]:
            counts["train" if split == ALL else split] = int(row["shape"][0])
    return counts
