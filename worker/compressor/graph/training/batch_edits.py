"""The edits by which a network with a fixed batch is made to take any: what a slot gets instead of what the file has there.

Each is tried first (`given`, on tensors) and written into the graph only when the whole is known to work (`build`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.network import Network


class Edit(Protocol):
    """Another value for one input slot of a node (or, in slot 0 of an output, for the output)."""

    @property
    def slot(self) -> int:
        """The input slot."""
        ...

    def given(self, value: Any, num_rows: int) -> Any:
        """What the slot gets at that many rows, from its own value there."""
        ...

    def build(self, builder: Builder, value: ir.Value) -> ir.Value:
        """The same in the graph."""
        ...


@dataclass(frozen=True)
class Number:
    """One number of a shape-like input (sizes, ends): a constant, or `factor` times the number of rows where it is None."""

    slot: int
    index: int
    number: int | None
    factor: int = 1

    def given(self, value: np.ndarray, num_rows: int) -> np.ndarray:
        """See `Edit`."""
        result = value.copy()
        result[self.index] = self.factor * num_rows if self.number is None else self.number
        return result

    def build(self, builder: Builder, value: ir.Value) -> ir.Value:
        """See `Edit`."""
        known = builder.network.tensors.get(value.name or "")
        if known is not None and self.number is not None:
            return builder.constant(self.given(known, 0))
        new = builder.rows(self.factor) if self.number is None else builder.constant(np.array([self.number]))
        length = builder.length(value)
        before, after = list(range(self.index)), list(range(self.index + 1, length))
        parts = [builder.picked(value, before), new, builder.picked(value, after)]
        return builder.node("Concat", [part for part in parts if part is not None], axis=0)


@dataclass(frozen=True)
class Spread:
    """A value that is the same for every sample, repeated along the axis of the samples, which has `own` entries now."""

    slot: int
    axis: int
    own: int

    def given(self, value: torch.Tensor, num_rows: int) -> torch.Tensor:
        """See `Edit`."""
        sizes = [-1] * value.ndim
        sizes[self.axis] = num_rows
        return value.narrow(self.axis, 0, 1).expand(sizes)

    def build(self, builder: Builder, value: ir.Value) -> ir.Value:
        """See `Edit`."""
        if self.own > 1:
            value = builder.node("Gather", [value, builder.constant(np.array([0]))], axis=self.axis)
        before = [builder.constant(np.ones(self.axis, np.int64))] if self.axis else []
        after = builder.rank(value) - self.axis - 1
        parts = [*before, builder.rows(), *([builder.constant(np.ones(after, np.int64))] if after else [])]
        return builder.node("Expand", [value, builder.node("Concat", parts, axis=0)])


@dataclass(frozen=True)
class Within:
    """Indices into the stretch of one sample, repeated along `axis` with the start of each sample's own stretch added."""

    slot: int
    axis: int
    own: int
    stride: int

    def given(self, value: torch.Tensor, num_rows: int) -> torch.Tensor:
        """See `Edit`."""
        shape = [-1 if axis == self.axis else 1 for axis in range(value.ndim)]
        return value.narrow(self.axis, 0, 1) + (torch.arange(num_rows) * self.stride).reshape(shape)

    def build(self, builder: Builder, value: ir.Value) -> ir.Value:
        """See `Edit`."""
        shape = [-1 if axis == self.axis else 1 for axis in range(builder.rank(value))]
        if self.own > 1:
            value = builder.node("Gather", [value, builder.constant(np.array([0]))], axis=self.axis)
        end = builder.node("Reshape", [builder.rows(self.stride), builder.constant(np.array([], np.int64))])
        starts = builder.node("Range", [builder.constant(np.array(0)), end, builder.constant(np.array(self.stride))])
        return builder.node("Add", [value, builder.node("Reshape", [starts, builder.constant(np.array(shape))])])


@dataclass(frozen=True)
class Move:
    """A value whose samples lie along axis `source`, where axis `target` has one entry: the two change places."""

    slot: int
    source: int
    target: int

    def given(self, value: torch.Tensor, num_rows: int) -> torch.Tensor:
        """See `Edit`."""
        return value.transpose(self.source, self.target)

    def build(self, builder: Builder, value: ir.Value) -> ir.Value:
        """See `Edit`."""
        order = list(range(builder.rank(value)))
        order[self.source], order[self.target] = self.target, self.source
        return builder.node("Transpose", [value], perm=order)


class Builder:
    """Puts nodes into a copy of a network, before the node at `place`; `shapes` are those at the file's own batch."""

    def __init__(self, network: Network, shapes: dict[str, tuple[int, ...]]) -> None:
        self.network = network
        self.place: ir.Node | None = None
        self._shapes = dict(shapes)
        self._rows: dict[int, ir.Value] = {}
        self._first = next(iter(network.graph), None)
        self._made: dict[ir.Value, ir.Value] = {}

    def node(self, op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        """The output of a new node."""
        return self._insert(self.place, op, inputs, **attributes)

    def constant(self, numbers: np.ndarray) -> ir.Value:
        """A new constant."""
        return self.network.add_tensor("batch.constant", numbers)

    def rows(self, factor: int = 1) -> ir.Value:
        """The number of rows times the factor, as a vector of one, from the first input's first axis."""
        if factor not in self._rows:
            if factor == 1:
                sizes = self._insert(self._first, "Shape", [self.network.graph.inputs[0]])
                zero = self.constant(np.array([0]))
                self._rows[1] = self._insert(self._first, "Gather", [sizes, zero], axis=0)
            else:
                times = [self.rows(), self.constant(np.array([factor]))]
                self._rows[factor] = self._insert(self._first, "Mul", times)
        return self._rows[factor]

    def picked(self, value: ir.Value, indices: list[int]) -> ir.Value | None:
        """These entries of a vector; None where there are none."""
        known = self.network.tensors.get(value.name or "")
        if not indices:
            return None
        if known is not None:
            return self.constant(known[indices])
        return self.node("Gather", [value, self.constant(np.array(indices))], axis=0)

    def length(self, value: ir.Value) -> int:
        """Number of entries of a vector."""
        return self._shapes[value.name or ""][0]

    def rank(self, value: ir.Value) -> int:
        """Number of axes of a value that the file has, or that a Gather of all axes made of one."""
        source = value
        while source.name not in self._shapes:
            source = self._made[source]
        return len(self._shapes[source.name or ""])

    def _insert(self, place: ir.Node | None, op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        name = self.network.unique_name("batch")
        made = ir.node(op, inputs, attributes=attributes)
        made.outputs[0].name = name
        if place is None:
            self.network.graph.append(made)
        else:
            self.network.graph.insert_before(place, made)
        self._made[made.outputs[0]] = inputs[0]
        return made.outputs[0]
