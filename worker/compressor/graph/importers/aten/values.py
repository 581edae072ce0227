"""What flows through a torch graph while it becomes ONNX: tensors, numbers that follow from free sizes, plain Python.

Every tensor carries its *trials*: the shape and dtype that it has at two sets of sizes that differ in every free axis.
torch itself computes them, on the meta device. A size that is equal in all trials is a number of the network; one that
is not is free, and becomes a value of the graph. So no symbolic algebra is needed, and none can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import onnx_ir as ir
import torch

Number = int | float | bool


class Unsupported(Exception):
    """Why an operator cannot be taken; whoever walks the graph adds which one and where."""


class Tensor:
    """A tensor of the graph that is being built. Operators that work in place rebind it; everyone who holds it sees so.

    Attributes:
        trials: meta tensors, one per trial.
        known: the content, where it depends on nothing but constants that are not weights.
        name: the dotted name of a parameter or buffer.
        filled: the number that it holds everywhere, where it was made so in a free size.
        stale: a view of it was changed in place, so that its content is no longer known here.
        parent, place: the tensor that this one is a view of, and how to put it back (`slice` or `select`, its arguments).
        views: the tensors that are views of this one.
    """

    __slots__ = ("_make", "_value", "filled", "known", "name", "parent", "place", "stale", "trials", "views")

    def __init__(
        self,
        trials: tuple[torch.Tensor, ...],
        value: ir.Value | None = None,
        *,
        make: Callable[[], ir.Value] | None = None,
        known: torch.Tensor | None = None,
        name: str | None = None,
        filled: Number | None = None,
    ) -> None:
        self.trials = trials
        self.known = known
        self.name = name
        self.filled = filled
        self.stale = False
        self.parent: Tensor | None = None
        self.place: tuple[str, tuple[Any, ...]] | None = None
        self.views: list[Tensor] = []
        self._value = value
        self._make = make

    @property
    def value(self) -> ir.Value:
        """The value in the graph; constants are put in at their first use.

        Raises:
            Unsupported: where the content is not known any more.
        """
        if self.stale:
            raise Unsupported("reads a tensor after a view of it was changed in place")
        if self._value is None:
            assert self._make is not None
            self._value = self._make()
        return self._value

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""
        return self.trials[0].dtype

    @property
    def rank(self) -> int:
        """The number of axes."""
        return self.trials[0].ndim

    def sizes(self, axis: int) -> tuple[int, ...]:
        """The length of an axis, in each trial."""
        return tuple(int(trial.shape[axis]) for trial in self.trials)

    def size(self, axis: int) -> int | None:
        """The length of an axis; None where it is free."""
        return same(self.sizes(axis))

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The length of each axis; None where it is free."""
        return tuple(self.size(axis) for axis in range(self.rank))

    @property
    def is_zero(self) -> bool:
        """Whether it is known to hold nothing but 0."""
        return self.filled == 0 or (self.known is not None and not self.known.any())

    def shares(self, other: Tensor) -> bool:
        """Whether both lie in the same memory."""
        return self.trials[0].untyped_storage()._cdata == other.trials[0].untyped_storage()._cdata

    def covers(self, other: Tensor) -> bool:
        """Whether both are the same elements of the same memory."""
        a, b = self.trials[0], other.trials[0]
        return self.shares(other) and (a.shape, a.stride(), a.storage_offset()) == (
            b.shape,
            b.stride(),
            b.storage_offset(),
        )

    def overlaps(self, other: Tensor) -> bool:
        """Whether an element of one is an element of the other, both in the same memory."""
        a, b = self.trials[0], other.trials[0]
        places = torch.arange(a.untyped_storage().nbytes() // a.element_size())
        mine, theirs = (places.as_strided(t.shape, t.stride(), t.storage_offset()).reshape(-1) for t in (a, b))
        return bool(torch.isin(mine, theirs).any())

    def family(self) -> list[Tensor]:
        """All that are known to lie in the same memory, this one included."""
        root = self
        while root.parent is not None:
            root = root.parent
        found = [root]
        for member in found:
            found.extend(member.views)
        return found

    def rebind(self, other: Tensor) -> None:
        """Hold what the other one holds: what an operator in place does. The memory stays its own."""
        self.known, self.name, self.filled = other.known, other.name, other.filled
        self._value, self._make = other._value, other._make


@dataclass(frozen=True, eq=False)
class Free:
    """A number that follows from free sizes: what it is in each trial, and its value in the graph (`[1]`)."""

    trials: tuple[Number, ...]
    value: ir.Value


#: An argument of an operator: also lists, tuples and dicts of these.
Value = Any


def same(numbers: tuple[Any, ...]) -> Any:
    """The number that all trials agree on, or None."""
    return numbers[0] if all(number == numbers[0] for number in numbers) else None


def is_number(value: Value) -> TypeGuard[Number]:
    """Whether it is a plain Python number."""
    return isinstance(value, int | float)  # bool is an int


def at_trial(value: Value, trial: int) -> Value:
    """The argument as torch takes it in one trial: meta tensors and plain numbers, containers likewise."""
    if isinstance(value, Tensor | Free):
        return value.trials[trial]
    if isinstance(value, list | tuple):
        return type(value)(at_trial(item, trial) for item in value)
    return value


def tensors_in(value: Value) -> list[Tensor]:
    """The tensors in an argument."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    return []


def has_free(value: Value) -> bool:
    """Whether a number in the argument follows from a free size."""
    return isinstance(value, Free) or (isinstance(value, list | tuple) and any(has_free(item) for item in value))
