"""The walk that joins labels by union-find, and writes down all that the grouping needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.compressor.graph.channels.grouping import Home
from worker.compressor.graph.channels.labels import Role
from worker.compressor.graph.channels.layer import Layer
from worker.compressor.graph.channels.products import Products
from worker.compressor.graph.channels.stretching import Stretch, Stretches, is_zero
from worker.compressor.graph.channels.zeros import keeps_zero
from worker.compressor.graph.evaluation import Facts
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.walk import FEWEST_BLOCKS, SHORT_BLOCK


@dataclass(frozen=True)
class Mark:
    """What a node does along an axis of a constant."""

    node: Node
    role: Role
    labels: np.ndarray


@dataclass
class Evidence:
    """All that the walk found, before anything is concluded."""

    homes: list[Home] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    quotas: list[np.ndarray] = field(default_factory=list)
    interleaved: list[np.ndarray] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)
    inexact: list[tuple[np.ndarray, str]] = field(default_factory=list)
    contracted: list[np.ndarray] = field(default_factory=list)
    summed: list[np.ndarray] = field(default_factory=list)  # along axes of constants: a weight's own norm
    divided: list[np.ndarray] = field(default_factory=list)  # of what is made of constants and divides: never zero


class Labelling(Products):
    """The walk that joins labels by union-find.

    `narrowed` names values whose blocks get narrower even where they are short enough to go as a whole.
    """

    def __init__(self, network: Network, facts: Facts, stretched: Stretches, narrowed: AbstractSet[str]) -> None:
        super().__init__(network, facts)
        self.stretched, self._narrowed = stretched, narrowed
        self._whole: dict[str, np.ndarray] = {}  # labels of values whose blocks go as a whole
        self.wanted: dict[
            tuple[str, int], Stretch
        ] = {}  # what met channels in this walk, and is to be given some in the next
        self._parent: list[int] = [0]
        self._owned: dict[tuple[str, int, int], np.ndarray] = {}
        self._start([])

    def _start(self, homes: list[Home]) -> None:
        """Before a walk: what met in those before it lies along fewer axes from now on."""
        self._known_classes = self.classes()
        self.evidence = Evidence(homes)
        self.layers, self.states, self._derived, self._fixed, self._sums = {}, set(), set(), set(), set()
        self.moved: dict[str, list[Layer]] = {}
        self._zero: set[str] = set()  # values in which a channel is zero when all that makes it is

    def walk(self) -> None:
        """Walk until every layer of labels has an axis that can get shorter.

        Rows and columns of a pixel shuffle hold channels of their own until a convolution slides over them.
        """
        super().walk()
        while self._is_misplaced():
            self._start(self.evidence.homes)
            super().walk()

    def _class(self, labels: np.ndarray) -> np.ndarray:
        """The classes of the labels by what met in the walks before this one."""
        known = self._known_classes
        return np.where(labels < len(known), known[np.minimum(labels, len(known) - 1)], labels)

    def _is_misplaced(self) -> bool:
        classes = self.classes()
        if np.array_equal(classes, self._known_classes):
            return False
        layers = (layer for layers in self.layers.values() for layer in layers if len(layer.axes) > 1)
        return any(not _can_narrow(classes[layer.array], layer.narrowed) for layer in layers)

    def classes(self) -> np.ndarray:
        """For each label the smallest label of its class; class 0 can never be removed."""
        return np.array([self._find(label) for label in range(len(self._parent))])

    def pin_output(self, labels: np.ndarray, name: str) -> None:
        """The channels of a model output have to stay."""
        self._pin(labels, f"it writes the model output '{name}'")

    def refuse(self, classes: np.ndarray, why: str) -> None:
        """These classes have to stay after all."""
        self._pin(classes, why)

    def _own(self, name: str, axis: int, parts: int = 1) -> np.ndarray:
        labels = self._fresh(name, axis, parts)
        return labels if parts > 1 else labels.reshape(-1)

    def _made(self, name: str, stretch: Stretch) -> np.ndarray:
        shape = [length if axis in stretch[0] else 1 for axis, length in enumerate(self.shape(name))]
        start, count = len(self._parent), math.prod(shape)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count).reshape(shape)

    def _want(self, name: str, axes: Sequence[int], narrowed: int) -> None:
        self.wanted.setdefault((name, narrowed), (tuple(axes), narrowed))

    def _align(self, name: str, axis: int, order: np.ndarray) -> np.ndarray:
        own = self._fresh(name, axis, order.shape[0] if order.ndim == 2 else 1)
        self._meet(own.reshape(order.shape), order)
        return own.reshape(order.shape)

    def _fresh(self, name: str, axis: int, parts: int) -> np.ndarray:
        """The constant's labels along the axis: new ones the first time, the same ones afterwards."""
        key = (name, axis, parts)
        if key not in self._owned:
            length = self.network.tensors[name].shape[axis]
            start = len(self._parent)
            self._parent.extend(range(start, start + parts * length))
            labels = np.arange(start, start + parts * length).reshape(parts, length)
            self._owned[key] = labels
            self.evidence.homes.append(Home(name, axis, labels if parts > 1 else labels[0]))
            for (other, other_axis, other_parts), known in list(self._owned.items()):
                if other == name and other_axis == axis and other_parts != parts:
                    # one tensor read in parts and as a whole: bound so that both readings lose the same
                    self._meet(labels, known[:1])
        return self._owned[key]

    def _meet(self, a: np.ndarray, b: np.ndarray) -> None:
        left, right = np.broadcast_arrays(a, b)
        pairs = np.unique(np.stack([left.reshape(-1), right.reshape(-1)]), axis=1)
        for one, other in pairs.T.tolist():
            self._union(one, other)

    def _pin(self, labels: np.ndarray, why: str) -> None:
        self.evidence.pins.append((np.unique(labels), why))

    def _inexact(self, labels: np.ndarray, why: str) -> None:
        self.evidence.inexact.append((np.unique(labels), why))

    def _contract(self, node: Node, labels: np.ndarray, names: Sequence[str]) -> None:
        if any(name in self.network.tensors for name in names):
            self.evidence.summed.append(np.unique(labels))
        elif any(name in self._zero for name in names):
            self.evidence.contracted.append(np.unique(labels))
        else:
            self._inexact(labels, f"{node.op} '{node.name}' sums over them, and they are never zero")

    def _goes_whole(self, name: str, layer: Layer, inside: set[int], adds: bool = False) -> bool:
        if adds and name in self._zero:
            return False
        row = layer.array[tuple(slice(None) if axis in inside else 0 for axis in range(layer.array.ndim))]
        return len(np.unique(row)) <= SHORT_BLOCK and self._go_whole(name, layer.array)

    def goes_by_blocks(self, name: str, blocks: int) -> bool:
        """See `Labels`."""
        labels = self._along(name, 1)
        return labels is not None and len(labels) // blocks <= SHORT_BLOCK and self._go_whole(name, labels)

    def _go_whole(self, name: str, labels: np.ndarray) -> bool:
        if name not in self._narrowed:
            self._whole[name] = labels
        return name in self._whole

    def stuck(self) -> set[str]:
        """Values whose blocks were to go as a whole, of which too few can."""
        classes = self.classes()
        pinned = np.concatenate([np.zeros(1, np.int64), *(labels for labels, _ in self.evidence.pins)])
        free = {name: np.setdiff1d(classes[labels], classes[pinned]) for name, labels in self._whole.items()}
        return {name for name, blocks in free.items() if len(blocks) < FEWEST_BLOCKS}

    def _uncrossed(self, layers: list[Layer]) -> list[Layer]:
        classes = [np.array([self._find(label) for label in layer.line().tolist()]) for layer in layers]
        best = max(range(len(layers)), key=lambda index: len(np.unique(classes[index])))
        kept = [layers[best]]
        for index, layer in enumerate(layers):
            pairs = len(np.unique(np.stack([classes[best], classes[index]]), axis=1).T)
            if pairs > len(np.unique(classes[best])):
                self._meet(layer.array, np.zeros(1, np.int64))  # all of them stay
            elif index != best:
                kept.append(layer)
        return kept

    def _quota(self, blocks: np.ndarray) -> None:
        self.evidence.quotas.append(blocks)

    def _mark(self, node: Node, role: Role, labels: np.ndarray) -> None:
        self.evidence.marks.append(Mark(node, role, labels))

    def _moved(self, node: Node, output: str, layers: list[tuple[np.ndarray, Layer]]) -> list[Layer]:
        found = []
        for array, source in layers:
            if node.op == "Pad":
                array = _extended(array, source)
            axes = []
            for axis in range(array.ndim):
                first = array.take([0], axis)
                if array.shape[axis] > 1 and (self._class(array) != self._class(first)).any():
                    axes.append(axis)
                else:
                    array = first
            narrows = self._narrows(node, output, source, axes) if len(axes) > 1 else None
            found.append(Layer(array, tuple(axes), narrows))
            if len(axes) == 1:
                self.evidence.interleaved += _interleaved(source)
        self.moved[output] = found
        return list(found)

    def _narrows(self, node: Node, output: str, source: Layer, axes: list[int]) -> int | None:
        """Which axis gets shorter, where the input's blocks lay along several axes already: they have to stay whole."""
        if len(source.axes) == 1:
            return None
        block_shape = [1 if axis == source.narrowed else length for axis, length in enumerate(source.array.shape)]
        blocks = np.arange(np.prod(block_shape)).reshape(block_shape)
        moved = self._run(*self._steering(node), node.inputs[0], blocks)[node.outputs.index(output)]
        flat = [axis for axis in axes if (moved == moved.take([0], axis)).all()]
        return flat[0] if flat else None

    def _steering(self, node: Node) -> tuple[Node, dict[str, Any]]:
        return node, {name: self.facts.known[name] for name in node.inputs if name in self.facts.known}

    def _calculate(self, node: Node) -> None:
        """Shapes are as observed."""

    def _passed(self, node: Node) -> None:
        labelled = {name for name in node.inputs if self._layers(name)}
        if is_zero(node, self.network) or (
            node.outputs[0] not in self.stretched
            and keeps_zero(node, self.network, self._zero, labelled, self._derived)
        ):
            self._zero.update(node.outputs)
        if node.op == "Div" and node.inputs[1] in self._derived:
            self.evidence.divided += [np.unique(layer.array) for layer in self._layers(node.inputs[1])]

    def _full_shape(self, name: str) -> tuple[int, ...]:
        return self.facts.shapes[name]

    def _find(self, label: int) -> int:
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def _union(self, one: int, other: int) -> None:
        a, b = self._find(one), self._find(other)
        if a != b:
            self._parent[max(a, b)] = min(a, b)  # 0 wins: what meets the unremovable cannot be removed


def _can_narrow(labels: np.ndarray, axis: int) -> bool:
    """Whether labels differ along the axis, or nowhere."""
    return bool((labels != labels.take([0], axis)).any() or labels.min() == labels.max())


def _interleaved(layer: Layer) -> list[np.ndarray]:
    """Rows of labels that take turns where the layer is made one line: [n, R] lies as n times one of each row."""
    after = [axis for axis in layer.axes if axis > layer.narrowed]
    if not after:
        return []
    length = layer.array.shape[layer.narrowed]
    num_rows = int(np.prod([layer.array.shape[axis] for axis in after]))
    return [np.ascontiguousarray(lines.T) for lines in layer.array.reshape(-1, length, num_rows)]


def _extended(array: np.ndarray, source: Layer) -> np.ndarray:
    """Padding along an axis without labels is of the channel that is padded."""
    for axis in range(array.ndim):
        if axis not in source.axes:
            array = array.max(axis=axis, keepdims=True)
    return array
