"""The second walk: which channel lies where in the cut network, and which positions of each weight it needs.

Labels are classes now, and two that meet must be the same in the same order; where they are not, the cut is refused.
Operators that move data are run again on the cut labels with their own shape inputs rewritten, so a channel shuffle over
unequal members of its groups comes out right: every weight is gathered in the order in which its input arrives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.channels.labels import Role
from worker.compressor.graph.channels.layer import Layer
from worker.compressor.graph.channels.products import Products
from worker.compressor.graph.channels.stretching import Stretch
from worker.compressor.graph.cost import shrinkings
from worker.compressor.graph.evaluation import as_tensor, evaluate
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import Rewrites, operator_of


class Replay(Products):
    """Walk a network with some units removed. Afterwards `takes` and `rewrites` say what to change.

    `takes` maps (tensor, axis) to the positions that it keeps, in order, `(n,)` or `(parts, n)`. `frozen` has, by first
    output and input slot, numbers that were computed from a shape (the scale of attention) and have to stay what they were.
    """

    def __init__(
        self, network: Network, analysis: Analysis, kept: Mapping[int, np.ndarray], orders: Mapping[bytes, np.ndarray]
    ) -> None:
        super().__init__(network, analysis.facts)
        self.analysis, self.stretched = analysis, analysis.stretched
        self._orders = orders
        self.takes: dict[tuple[str, int], np.ndarray] = {}
        self.rewrites: dict[str, Rewrites] = {}
        self.frozen: dict[tuple[str, int], np.ndarray] = {}
        self._kept = kept
        self._removed = removed_classes(analysis, kept)
        self._homes = {(home.tensor, home.axis): home.labels for homes in analysis.homes.values() for home in homes}
        self._numbers: dict[str, np.ndarray] = {}

    def positions(self, name: str, axis: int, chosen: Sequence[int]) -> list[int]:
        """Where the chosen positions of an axis lie now, those that are gone left out.

        Raises:
            GraphError: if they no longer lie one after the other in that order.
        """
        layers = (self.analysis.labels.get(name, []), self.layers.get(name, []))
        before, now = (self._rows(found, name, axis) for found in layers)
        found = {tuple(self._found(*rows, chosen)) for rows in zip(before, now, strict=True)}
        if len(found) > 1:
            raise GraphError(f"parts of '{name}' would lie elsewhere in each block")
        positions = list(found.pop())
        if not positions:
            raise GraphError(f"nothing would be left of a part of '{name}'")
        return positions

    def _found(self, before: np.ndarray, now: np.ndarray, chosen: Sequence[int]) -> list[int]:
        place = np.full(len(before), -1)
        place[_gather(before, now, np.flatnonzero(~self._removed[before]))] = np.arange(len(now))
        return [int(place[index]) for index in chosen if place[index] >= 0]

    def _rows(self, layers: list[Layer], name: str, axis: int) -> np.ndarray:
        """The labels along an axis, one row for each block where the channels lie along several."""
        layer = next((layer for layer in layers if axis in layer.axes), None)
        if layer is None:
            return np.zeros((1, self.shape(name)[axis]), np.int64)
        return np.moveaxis(layer.array, axis, -1).reshape(-1, layer.array.shape[axis])

    def shape_now(self, name: str) -> tuple[int, ...]:
        """Shape of a value after the cut."""
        shape = list(self.facts.shapes[name])
        for layer in self.layers.get(name, []):
            for axis in layer.axes:
                shape[axis] = layer.array.shape[axis]
        return tuple(shape)

    def shape_wanted(self, name: str) -> tuple[int, ...]:
        """Shape that a value is to have after the cut, from the analysis alone."""
        shape = list(self.facts.shapes[name])
        for shrinking in shrinkings(self.analysis, name):
            shape[shrinking.axis] -= shrinking.lost(self._kept)
        return tuple(shape)

    def numbers_now(self, node: Node, slot: int) -> list[int] | None:
        """The known numbers of an input as the cut network computes them."""
        if slot < len(node.inputs) and node.inputs[slot] in self._numbers:
            return [int(number) for number in self._numbers[node.inputs[slot]].reshape(-1).tolist()]
        return self.numbers(node, slot)

    def lines(self, name: str) -> list[tuple[int, np.ndarray]]:
        """Per axis of a value that lost something the uncut positions that are left, in the order in which they lie now."""
        found = []
        layers = [layer for layer in self.layers.get(name, []) if layer.is_line]
        for layer in layers:
            axis = layer.axes[0]
            if sum(other.axes == layer.axes for other in layers) > 1:  # a weight's inputs times its kernel
                continue
            before = self._line(self.analysis.labels.get(name, []), name, axis)
            left = np.flatnonzero(~self._removed[before])
            if len(left) < len(before):  # others may be longer where the batch is
                found.append((axis, _gather(before, layer.line(), left)))
        return found

    def _line(self, layers: list[Layer], name: str, axis: int) -> np.ndarray:
        for layer in layers:
            if layer.axes == (axis,):
                return layer.line()
            if axis in layer.axes:
                raise GraphError(f"the channels of '{name}' lie along several axes")
        return np.zeros(self.shape(name)[axis], np.int64)

    def _own(self, name: str, axis: int, parts: int = 1) -> np.ndarray:
        classes = np.atleast_2d(self._home(name, axis))
        if (name, axis) not in self.takes:
            left = np.stack([np.flatnonzero(~self._removed[row]) for row in classes])
            self.takes[name, axis] = left if parts > 1 else left[0]
            if (order := self._orders.get(classes.tobytes())) is not None:
                self.takes[name, axis] = _gather(classes[0], order, left[0])
        own = np.take_along_axis(classes, np.atleast_2d(self.takes[name, axis]), 1)
        return own if parts > 1 else own[0]

    def _made(self, name: str, stretch: Stretch) -> np.ndarray:
        shape = [length if axis in stretch[0] else 1 for axis, length in enumerate(self.shape(name))]
        layer = next(layer for layer in self.analysis.labels[name] if layer.narrowed == stretch[1])
        lines = np.moveaxis(np.broadcast_to(layer.array, shape), stretch[1], -1)
        left = [line[~self._removed[line]] for line in lines.reshape(-1, shape[stretch[1]])]
        return np.moveaxis(np.stack(left).reshape(*lines.shape[:-1], -1), -1, stretch[1])

    def _want(self, name: str, axes: Sequence[int], narrowed: int) -> None:
        """The analysis has given it channels wherever they can be cut."""

    def _align(self, name: str, axis: int, order: np.ndarray) -> np.ndarray:
        classes = self._home(name, axis)
        if order.ndim == 1:
            take = _gather(classes, order, np.flatnonzero(~self._removed[classes]))
        else:
            rows = [_gather(c, o, np.flatnonzero(~self._removed[c])) for c, o in zip(classes, order, strict=True)]
            take = np.stack(rows)
        known = self.takes.setdefault((name, axis), take)
        if known.shape != take.shape or (known != take).any():
            raise GraphError(f"'{name}' would be needed in two different orders")
        return order

    def _home(self, name: str, axis: int) -> np.ndarray:
        # an axis that nobody labelled keeps all: class 0 is never removed
        return self._homes.get((name, axis), np.zeros(self.network.tensors[name].shape[axis], np.int64))

    def _meet(self, a: np.ndarray, b: np.ndarray) -> None:
        try:
            left, right = np.broadcast_arrays(a, b)
        except ValueError as error:
            raise GraphError("a cut would leave two values of different width to be combined") from error
        if (left != right).any():
            raise _Disorder(left, right)

    def settle(self, disorder: _Disorder) -> dict[bytes, np.ndarray]:
        """By their line of classes the makers that can take the order of what they met, and that order; none: empty."""
        one, other = disorder.lines
        if not np.array_equal(np.sort(one), np.sort(other)):
            return {}
        for name, axis in self.takes:
            classes = self._home(name, axis)
            if classes.ndim > 1 or classes.tobytes() in self._orders:
                continue
            left = classes[~self._removed[classes]]
            for mine, wanted in ((one, other), (other, one)):
                if np.array_equal(mine, left):
                    return {classes.tobytes(): wanted}
        return {}

    def _pin(self, labels: np.ndarray, why: str) -> None:
        """Already taken into account by the analysis."""

    def _inexact(self, labels: np.ndarray, why: str) -> None:
        """Already known from the analysis."""

    def _contract(self, node: Node, labels: np.ndarray, names: Sequence[str]) -> None:
        """Already known from the analysis."""

    def _goes_whole(self, name: str, layer: Layer, inside: set[int], adds: bool = False) -> bool:
        # those that do have been joined, so that the analysis has them along fewer axes
        return all(other.axes != layer.axes for other in self.analysis.labels.get(name, []))

    def goes_by_blocks(self, name: str, blocks: int) -> bool:
        """See `Labels`."""
        rows = self._line(self.analysis.labels.get(name, []), name, 1).reshape(blocks, -1)
        return bool((rows == rows[:, :1]).all())

    def _uncrossed(self, layers: list[Layer]) -> list[Layer]:
        return [layer for layer in layers if layer.array.any()] or layers[:1]

    def _quota(self, blocks: np.ndarray) -> None:
        """Checked where the rows are matched."""

    def _mark(self, node: Node, role: Role, labels: np.ndarray) -> None:
        """Already known from the analysis."""

    def _moved(self, node: Node, output: str, layers: list[tuple[np.ndarray, Layer]]) -> list[Layer]:
        found = []
        for (array, source), model in zip(layers, self.analysis.moved[output], strict=True):
            for axis in range(array.ndim):
                if axis not in model.axes:
                    padded = node.op == "Pad" and axis not in source.axes
                    array = array.max(axis=axis, keepdims=True) if padded else array.take([0], axis)
            found.append(Layer(array, model.axes, model.narrows))
        return found

    def _calculate(self, node: Node) -> None:
        env: dict[str, Any] = {
            name: self._numbers.get(name, self.facts.known.get(name))
            if name in self.facts.known
            else torch.empty(self.shape_now(name), device="meta")
            for name in node.inputs
            if name and name not in self.network.tensors
        }
        outputs = evaluate(node, env, self.network, constant=self._constant, shape=self.shape)
        self._numbers.update(zip(node.outputs, outputs, strict=False))

    def _constant(self, name: str) -> torch.Tensor:
        return as_tensor(self.network.tensors[name])

    def _steering(self, node: Node) -> tuple[Node, dict[str, Any]]:
        env: dict[str, Any] = {name: self._numbers[name] for name in node.inputs if name in self._numbers}
        rewrites = self._rewritten(node)
        if not rewrites:
            return node, env
        attributes, inputs = dict(node.attributes), list(node.inputs)
        for place, numbers in rewrites.items():
            if isinstance(numbers, float):
                attributes[str(place)] = numbers
                continue
            if isinstance(place, str):
                attributes[place] = _filled(numbers, list(node.attributes.get(place, [])))
                continue
            inputs.extend([""] * (place + 1 - len(inputs)))
            inputs[place] = f"{node.outputs[0]}:{place}"
            if isinstance(numbers, np.ndarray):
                env[inputs[place]] = numbers
            else:
                env[inputs[place]] = np.array(_filled(numbers, self.numbers_now(node, place) or []), np.int64)
        attributes.pop("num_outputs", None)  # of Split: the sizes say it now
        return dataclasses.replace(node, attributes=attributes, inputs=tuple(inputs)), env

    def _passed(self, node: Node) -> None:
        self._rewritten(node)
        for slot, name in enumerate(node.inputs):
            before, now = self.facts.known.get(name), self._numbers.get(name)
            if before is None or now is None or before.dtype.kind != "f":
                continue
            if not np.array_equal(before, now):
                self.frozen[node.outputs[0], slot] = before

    def _rewritten(self, node: Node) -> Rewrites:
        if node.outputs[0] not in self.rewrites:
            rewrite = operator_of(node).rewrite
            self.rewrites[node.outputs[0]] = rewrite(self, node) if rewrite is not None else {}
        return self.rewrites[node.outputs[0]]

    def _full_shape(self, name: str) -> tuple[int, ...]:
        return self.shape_now(name)


class _Disorder(GraphError):
    """Two values that are combined have the same channels, or not even those, in another order."""

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        super().__init__("a cut would leave two values whose channels lie in different order to be combined")
        self.lines = left.reshape(-1), right.reshape(-1)


def replay(network: Network, analysis: Analysis, kept: Mapping[int, np.ndarray]) -> Replay:
    """The finished walk with these units kept.

    A layer makes its channels in the order in which they lay, but for those that meet channels which arrive in another
    one (from a shuffle over unequal members): it makes them in theirs.

    Raises:
        GraphError: if the cut cannot be carried through.
    """
    orders: dict[bytes, np.ndarray] = {}
    while True:
        walk = Replay(network, analysis, kept, orders)
        try:
            walk.walk()
            return walk
        except _Disorder as disorder:
            settled = walk.settle(disorder)
            if not settled:
                raise
            orders |= settled


def removed_classes(analysis: Analysis, kept: Mapping[int, np.ndarray]) -> np.ndarray:
    """For each class whether it goes, when each named group keeps these units and the others keep all."""
    removed = np.zeros(len(analysis.group_of), bool)
    for group, units in kept.items():
        inside = analysis.group_of == group
        removed[inside] = ~np.isin(analysis.unit_of[inside], units)
    return removed


def _filled(numbers: Sequence[int | None] | np.ndarray, old: Sequence[int]) -> list[int]:
    return [old[index] if number is None else number for index, number in enumerate(numbers)]


def _gather(classes: np.ndarray, order: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Positions of `classes` (among `left`) that give `order`; a class that occurs more than once keeps its order."""
    places, goals = left[np.argsort(classes[left], kind="stable")], np.argsort(order, kind="stable")
    if len(places) != len(goals) or (classes[places] != order[goals]).any():
        raise GraphError("a cut would leave a weight without a matching input")
    take = np.empty(len(order), np.int64)
    take[goals] = places
    return take
