"""Labels on the channels of every value, and how each verb of `walk.Walk` carries them on.

A value has label layers. A layer is an integer array of the value's rank, full along the axes where labels differ and of
length 1 along the others; 0 marks an element that can never be removed. An element goes when its label in any layer
goes. A convolution weight has one layer along its outputs and one along its inputs; a tensor reshaped to
[N, groups, channels / groups] has one layer along both axes.

Two walks share these verbs: `channels.Labelling` joins labels, `surgery.Replay` follows them through a cut network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from worker.compressor.graph.channels.concatenation import concatenate
from worker.compressor.graph.channels.joining import join
from worker.compressor.graph.channels.layer import Layer, layer_along
from worker.compressor.graph.channels.recurrence import recur
from worker.compressor.graph.channels.stretching import Stretch, Stretches, is_stretched
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.evaluation import Facts, as_tensor, evaluate
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.walk import Place

Role = Literal["produces", "follows", "consumes"]


class Labels(ABC):
    """One walk in topological order. The subclass says what it means that two labels meet."""

    def __init__(self, network: Network, facts: Facts) -> None:
        self.network = network
        self.facts = facts
        self.layers: dict[str, list[Layer]] = {}
        self.stretched: Stretches = {}  # values that repeat one element, where they are given channels
        self.states: set[str] = set()  # outputs of recurrent operators, and what stacks them
        self._derived: set[str] = set()  # what is made from constants alone
        self._fixed: set[str] = set()  # numbers that follow from constants alone: the shape of a weight
        self._sums: set[str] = set()  # of those, what several constants with channels are added to

    @abstractmethod
    def _own(self, name: str, axis: int, parts: int = 1) -> np.ndarray:
        """The labels along an axis of a constant, `(n,)`, or `(parts, n)` per part of axis 0."""

    @abstractmethod
    def _made(self, name: str, stretch: Stretch) -> np.ndarray:
        """The labels of a value that repeats one element, along these axes."""

    @abstractmethod
    def _want(self, name: str, axes: Sequence[int], narrowed: int) -> None:
        """A value that repeats one element meets channels along these axes, and has none."""

    @abstractmethod
    def _align(self, name: str, axis: int, order: np.ndarray) -> np.ndarray:
        """Let an axis of a constant carry these labels, `(n,)`, or `(parts, n)` per part of axis 0; returns its own."""

    @abstractmethod
    def _meet(self, a: np.ndarray, b: np.ndarray) -> None:
        """The labels at the same (broadcast) place in both arrays are of one channel."""

    @abstractmethod
    def _pin(self, labels: np.ndarray, why: str) -> None:
        """These channels have to stay."""

    @abstractmethod
    def _inexact(self, labels: np.ndarray, why: str) -> None:
        """A cut of these channels changes what the others are, because something is computed over all of them."""

    @abstractmethod
    def _contract(self, node: Node, labels: np.ndarray, names: Sequence[str]) -> None:
        """These channels are summed over: they count for nothing where one of the named values is zero there."""

    @abstractmethod
    def _goes_whole(self, name: str, layer: Layer, inside: set[int], adds: bool = False) -> bool:
        """Whether the few channels along `inside` stay or go together; `adds`: where zeros count for nothing, they do not."""

    @abstractmethod
    def goes_by_blocks(self, name: str, blocks: int) -> bool:
        """Whether the channels along axis 1 stay or go by such blocks, each as a whole."""

    @abstractmethod
    def _uncrossed(self, layers: list[Layer]) -> list[Layer]:
        """Those of a constant's layers along one axis that say the same: heads and positions in them would all be one."""

    @abstractmethod
    def _quota(self, blocks: np.ndarray) -> None:
        """Each row of the array must lose the same number."""

    @abstractmethod
    def _mark(self, node: Node, role: Role, labels: np.ndarray) -> None:
        """What the node does along an axis of a constant that carries these labels."""

    @abstractmethod
    def _moved(self, node: Node, output: str, layers: list[tuple[np.ndarray, Layer]]) -> list[Layer]:
        """Layers of an output from full label arrays and the layers that they came from."""

    @abstractmethod
    def _steering(self, node: Node) -> tuple[Node, dict[str, Any]]:
        """The node and its known inputs as they are in this walk (rewritten where an axis was cut)."""

    @abstractmethod
    def _full_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value in this walk."""

    @abstractmethod
    def _calculate(self, node: Node) -> None:
        """A node that computes with shapes alone."""

    @abstractmethod
    def _passed(self, node: Node) -> None:
        """The rule of this node has been applied."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value in the uncut network, at the sample shapes."""
        return self.facts.shapes[name]

    def is_weight(self, name: str) -> bool:
        """Whether the value is a constant, or made from constants alone."""
        return name in self.network.tensors or name in self._derived

    def numbers(self, node: Node, slot: int) -> list[int] | None:
        """The known numbers of an input (axes, sizes, starts), None where there are none."""
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        name = node.inputs[slot]
        known = self.facts.known.get(name, self.network.tensors.get(name))
        return None if known is None else [int(number) for number in known.reshape(-1).tolist()]

    def consume(self, node: Node, x: Place, weight: Place, *, slides: Sequence[int] = (), parts: int = 1) -> None:
        """Sum over the channels of `x`; see `walk.Walk`."""
        source, axis = self._place(node, x)
        tensor, weight_axis = self._place(node, weight)
        self._begin(node, source, axis)
        self._settle(source, slides)
        self.layers[node.outputs[0]] = [layer for layer in self._layers(source) if axis not in layer.axes]
        labels = self._along(source, axis)
        if labels is None:
            if is_stretched(self.network, self.facts, source, axis):
                self._want(source, [axis], axis)
            self._pin(self._own_or_derived(tensor, weight_axis), f"'{source}' is not narrowed")
            return
        if parts > 1 and weight_axis == 0:
            self._quota(labels.reshape(parts, -1))
        elif parts > 1 and tensor in self.network.tensors:
            labels = labels.reshape(parts, -1)
            self._quota(labels)
        elif parts > 1:
            rows = labels.reshape(parts, -1)
            self._meet(rows, rows[:1])
            labels = rows[0]
        self._read(node, source, tensor, self._match(tensor, weight_axis, labels))

    def _read(self, node: Node, source: str, tensor: str, labels: np.ndarray) -> None:
        """A weight reads these channels; where it is itself a sum, its slices of one term being zero is not enough."""
        self._mark(node, "consumes", labels)
        if tensor in self._sums:
            self._contract(node, labels, (source, tensor))

    def produce(self, node: Node, weight: Place, axis: int, *, also: Sequence[Place] = (), parts: int = 1) -> None:
        """The output's axis is made by the weight's axis; see `walk.Walk`."""
        tensor, weight_axis = self._place(node, weight)
        if parts > 1 and weight_axis > 0:  # each part has an axis of its own, which comes after that of the part before
            apart = tensor in self.network.tensors
            labels = self._own(tensor, weight_axis, parts) if apart else self._own_or_derived(tensor, weight_axis)
            labels = labels.reshape(-1) if apart else np.tile(labels, parts)
        else:
            labels = self._own_or_derived(tensor, weight_axis)
        self._mark(node, "produces", labels)
        for place in also:
            bias, bias_axis = self._place(node, place)
            if self.is_weight(bias):
                self._mark(node, "produces", self._match(bias, bias_axis, labels))
            else:
                self._pin(labels, f"'{node.name}' takes its bias from data")
        if parts > 1:
            self._quota(labels.reshape(parts, -1))
        output = node.outputs[0]
        made = layer_along(labels, axis, len(self.shape(output)))
        is_single = self.shape(output)[axis] == 1  # what a single channel gates does not depend on each other for that
        self.layers.setdefault(output, []).append(Layer(made.array, ()) if is_single else made)

    def follow(self, node: Node, x: Place, weights: Sequence[Place], *, slides: Sequence[int] = ()) -> None:
        """Each channel goes on by itself with its own entries of the weights; see `walk.Walk`."""
        source, axis = self._place(node, x)
        self._settle(source, slides)
        labels = self._along(source, axis)
        rest = [layer for layer in self._layers(source) if axis not in layer.axes]
        output = node.outputs[0]
        self.layers[output] = rest
        for place in weights:
            tensor, weight_axis = self._place(node, place)
            if labels is None:
                self._pin(self._own_or_derived(tensor, weight_axis), f"'{source}' is not narrowed")
            else:
                times = self.shape(tensor)[weight_axis] // self.shape(source)[axis]
                self._mark(node, "follows", self._match(tensor, weight_axis, np.repeat(labels, times)))
        if labels is not None:
            times = self.shape(output)[axis] // self.shape(source)[axis]
            self.layers[output] = [*rest, layer_along(np.repeat(labels, times), axis, len(self.shape(output)))]

    def keep(self, node: Node, *, slides: Sequence[int] = ()) -> None:
        """Every element stays where it is; see `walk.Walk`."""
        self._label_all(node.inputs[0])
        self._settle(node.inputs[0], slides)
        for output in filter(None, node.outputs):
            self.layers[output] = list(self._layers(node.inputs[0]))

    def join(self, node: Node) -> None:
        """Elementwise with broadcasting; see `walk.Walk`."""
        join(self, node)

    def move(self, node: Node, *, slides: Sequence[int] = ()) -> None:
        """Run the operator itself on the labels; see `walk.Walk`."""
        data = operator_of(node).data or (0,)
        source = node.inputs[data[0]]
        if source in self.network.tensors:
            self._label_all(source)
        self._settle(source, slides)
        steered, env = self._steering(node)
        made: dict[str, list[tuple[np.ndarray, Layer]]] = {name: [] for name in node.outputs if name}
        for layer in self._layers(source):
            for name, array in zip(node.outputs, self._run(steered, env, source, layer.array), strict=False):
                if name and 0 not in self.shape(name):
                    made[name].append((array, layer))
        for name, arrays in made.items():
            self.layers[name] = self._moved(node, name, arrays)

    def _run(self, node: Node, env: dict[str, Any], source: str, array: np.ndarray) -> list[np.ndarray]:
        """The outputs of an operator that moves data, run on an array of numbers, one per element of its input."""
        env[source] = torch.from_numpy(np.broadcast_to(array, self._full_shape(source)).copy())
        outputs = evaluate(
            node,
            env,
            self.network,
            constant=lambda name: as_tensor(self.network.tensors[name]),
            shape=lambda name: tuple(env[name].shape) if name in env else self.shape(name),
            moving=True,
        )
        return [value.numpy() for value in outputs]

    def concatenate(self, node: Node, axis: int) -> None:
        """The inputs one after the other; see `walk.Walk`."""
        concatenate(self, node, axis)

    def recur(
        self, node: Node, *, vectors: Sequence[int], states: Sequence[Place], places: Sequence[tuple[int, int]]
    ) -> None:
        """Hidden units of a recurrent operator; see `walk.Walk`."""
        recur(self, node, vectors, states, places)

    def reduce(self, node: Node, axes: Sequence[int], *, keepdims: bool, adds: bool = False) -> None:
        """Combine over the axes, whose labels end here; see `walk.Walk`."""
        source = node.inputs[0]
        self._label_all(source)
        going_on, found = [], []
        for layer in self._layers(source):
            inside = set(axes) & set(layer.axes)
            is_cut = layer.narrowed in axes and not self._goes_whole(source, layer, inside, adds)
            if inside and (inside == set(layer.axes) or is_cut):
                if adds:
                    self._contract(node, layer.array, (source,))
                else:
                    self._inexact(layer.array, f"{node.op} '{node.name}' combines them")
            else:
                layer = self._settled(layer, off=inside)
                going_on.append(layer)
            found.append(layer)
        self.layers[source] = found
        left = [axis for axis in range(len(self.shape(source))) if keepdims or axis not in axes]
        self.layers[node.outputs[0]] = [
            Layer(
                layer.array.reshape([layer.array.shape[axis] for axis in left]),
                tuple(left.index(axis) for axis in layer.axes),
                left.index(layer.narrowed),
            )
            for layer in going_on
        ]

    def close(self, node: Node, axes: Sequence[int], why: str) -> None:
        """Channels along the axes have to stay; see `walk.Walk`."""
        rank = len(self.shape(node.inputs[0]))
        closed = {axis % rank for axis in axes}
        for layer in self._layers(node.inputs[0]):
            if closed & set(layer.axes):
                self._pin(layer.array, why)
        self.layers[node.outputs[0]] = list(self._layers(node.inputs[0]))

    def pin(self, node: Node, why: str) -> None:
        """Every channel that reaches the node has to stay; see `walk.Walk`."""
        for name in filter(None, node.inputs):
            if name in self.network.tensors:
                self._label_all(name)
            for layer in self._layers(name):
                self._pin(layer.array, why)

    def _layers(self, name: str) -> list[Layer]:
        return self.layers.get(name, [])

    def _place(self, node: Node, place: Place) -> tuple[str, int]:
        name = node.inputs[place[0]]
        return name, place[1] % len(self.shape(name))

    def _label_all(self, name: str) -> None:
        """Give every axis of a float constant its labels: it takes part in computations among constants."""
        array = self.network.tensors.get(name)
        if array is not None and is_float(array) and name not in self.layers:
            lines = [(axis, self._own(name, axis)) for axis, length in enumerate(array.shape) if length > 1]
            self.layers[name] = [layer_along(line, axis, array.ndim) for axis, line in lines]

    def _begin(self, node: Node, name: str, axis: int) -> None:
        """A constant that a layer reads makes its channels there (learned queries), and what comes of it is no weight."""
        if self.is_weight(name):
            self._label_all(name)
            labels = self._along(name, axis)
            if labels is not None:
                self._mark(node, "produces", labels)
            self._derived.difference_update(node.outputs)

    def _own_or_derived(self, name: str, axis: int) -> np.ndarray:
        if name in self.network.tensors:
            return self._own(name, axis)
        labels = self._along(name, axis)
        return np.zeros(self.shape(name)[axis], np.int64) if labels is None else labels

    def _match(self, name: str, axis: int, order: np.ndarray) -> np.ndarray:
        """Let an axis of a constant, direct or derived, carry the labels `order`; returns its own labels."""
        if name in self.network.tensors:
            return self._align(name, axis, order)
        own = self._own_or_derived(name, axis)
        self._meet(own, order)
        return own

    def _along(self, name: str, axis: int) -> np.ndarray | None:
        """The labels along one axis of a value, all layers there made one; None where it has none."""
        here = [layer for layer in self._layers(name) if axis in layer.axes]
        if not here:
            return None
        settled = [self._settled(layer, off=set(layer.axes) - {axis}) for layer in here]
        if len(settled) > 1 and name in self._derived:
            settled = self._uncrossed(settled)
        for other in settled[1:]:
            self._meet(settled[0].array, other.array)
        rest = [layer for layer in self._layers(name) if axis not in layer.axes]
        self.layers[name] = [*rest, settled[0]]
        return settled[0].line()

    def _settle(self, name: str, axes: Sequence[int]) -> None:
        """Labels of the value may not differ along these axes: those that do are joined."""
        self.layers[name] = [self._settled(layer, off=set(axes) & set(layer.axes)) for layer in self._layers(name)]

    def _settled(self, layer: Layer, *, off: set[int]) -> Layer:
        """The layer with labels that do not differ along the axes `off`: those that do are joined."""
        array = layer.array
        for axis in sorted(off):
            first = array.take([0], axis)
            self._meet(array, first)
            array = first
        axes = tuple(axis for axis in layer.axes if axis not in off)
        return Layer(array, axes, None if layer.narrows in off else layer.narrows)
