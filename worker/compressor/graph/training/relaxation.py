"""Where a file's own batch is baked into the graph, and what to write there instead, found by following numbers.

The network runs on several batches of its own size, part by part, and beside that on all of their rows at once, node by
node. After each node the rows must be those of the parts, one batch after the other along one axis (`Place`); where they
are not, or the node does not run, its numbers are changed (sizes of a Reshape, Expand, Resize or Slice), or values that
are the same for every sample are repeated (states of recurrent layers, tokens that are concatenated). Where the samples
may lie along several axes after a Reshape, the other ways are tried when a later node does not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import Constants, Stepper, evaluate
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.training.batch_edits import Edit, Move, Number, Spread, Within

_FAILURES = (RuntimeError, IndexError, ValueError, TypeError, KeyError, ArithmeticError, ImportFailed)
_MOST_ATTEMPTS = 24
_TOLERANCE = 1e-4
_LAST = np.iinfo(np.int64).max
#: Operators behind which the samples may lie along one axis or another.
_AMBIGUOUS = ("Reshape", "Gather")
#: Slots of recurrent operators with the axis of the samples there: X, sequence_lens, initial_h, initial_c.
_RECURRENT = {0: 1, 4: 0, 5: 1, 6: 1}


@dataclass(frozen=True)
class Place:
    """Where a value has the samples: an axis of `outer` times batch times whatever else lies along it."""

    axis: int
    outer: int = 1


@dataclass
class Relaxation:
    """What to change: edits by first output of the node, and by name of the output port. `shapes` as the file has them."""

    edits: dict[str, tuple[Edit, ...]]
    outputs: dict[str, Edit]
    shapes: dict[str, tuple[int, ...]]


def relax(network: Network, parts: Sequence[Mapping[str, torch.Tensor]], batch: int) -> Relaxation | None:
    """The edits that let the network take any number of rows; None where there are none that do.

    `parts` are inputs of `batch` rows each, different from one another, at least two of them.
    """
    choices: list[int] = []
    for _ in range(_MOST_ATTEMPTS):
        attempt = _Attempt(network, parts, batch, choices)
        with torch.no_grad():
            if attempt.succeeds():
                return attempt.found
        choices = attempt.chosen
        while choices and choices[-1] + 1 >= attempt.ways[len(choices) - 1]:
            choices.pop()
        if not choices:
            return None
        choices[-1] += 1
    return None


class _Attempt:
    """One run through the network with these choices where there are several ways; the first way beyond them."""

    def __init__(
        self, network: Network, parts: Sequence[Mapping[str, torch.Tensor]], batch: int, choices: Sequence[int]
    ) -> None:
        self.found = Relaxation({}, {}, {name: array.shape for name, array in network.tensors.items()})
        self.chosen: list[int] = []
        self.ways: list[int] = []
        self._choices = choices
        self._network, self._batch, self._rows = network, batch, batch * len(parts)
        self._steppers = [Stepper(network, part) for part in parts]
        self._together: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._places: dict[str, Place | None] = dict.fromkeys(self._together, Place(0))
        self._constants = Constants(network)
        self._last = {name: index for index, node in enumerate(network.nodes) for name in node.inputs}
        self._last |= dict.fromkeys((port.name for port in network.outputs), len(network.nodes))

    def succeeds(self) -> bool:
        """Whether all nodes and outputs do; `found` says how."""
        for index, node in enumerate(self._network.nodes):
            before = self._steppers[0].inputs(node)
            self._note(node.inputs, before)
            wanted = [stepper.step() for stepper in self._steppers]
            self._note(node.outputs, wanted[0])
            if not self._take(node, wanted):
                return False
            for name in {*node.inputs, *node.outputs}:
                if self._last.get(name, -1) <= index:
                    self._together.pop(name, None)
        return all(self._gives(port.name) for port in self._network.outputs)

    def _note(self, names: Sequence[str], values: Sequence[Any]) -> None:
        for name, value in zip(names, values, strict=False):
            if name and value is not None:
                self.found.shapes[name] = tuple(value.shape)

    def _take(self, node: Node, wanted: list[tuple[Any, ...]]) -> bool:
        """Evaluate the node in the first (or chosen) way that gives what is wanted."""
        ways: list[tuple[tuple[Edit, ...], tuple[tuple[Any, ...], list[Place | None]]]] = []
        for edits in self._candidates(node):
            made = self._evaluated(node, edits, wanted)
            if made is not None and all(made[1] != places for _, (_, places) in ways):
                ways.append((edits, made))
                if node.op not in _AMBIGUOUS:
                    break
        if not ways:
            return False
        chosen = 0
        if len(ways) > 1:
            chosen = self._choices[len(self.chosen)] if len(self.chosen) < len(self._choices) else 0
            self.chosen.append(chosen)
            self.ways.append(len(ways))
        edits, (outputs, places) = ways[chosen]
        if edits:
            self.found.edits[node.outputs[0]] = edits
        self._together.update(zip(node.outputs, outputs, strict=False))
        self._places.update(zip(node.outputs, places, strict=False))
        return True

    def _evaluated(
        self, node: Node, edits: Sequence[Edit], wanted: list[tuple[Any, ...]]
    ) -> tuple[tuple[Any, ...], list[Place | None]] | None:
        env = {name: self._together[name] for name in node.inputs if name in self._together}
        inputs = list(node.inputs)
        try:
            for edit in edits:
                name = f"{node.outputs[0]}:{edit.slot}"
                value = self._known(inputs[edit.slot]) if isinstance(edit, Number) else self._value(inputs[edit.slot])
                inputs[edit.slot], env[name] = name, edit.given(value, self._rows)
            outputs = evaluate(
                replace(node, inputs=tuple(inputs)), env, self._network,
                constant=self._constants,
                shape=lambda name: tuple((env[name] if name in env else self._network.tensors[name]).shape),
                device="cpu",
            )  # fmt: skip
            return outputs, [
                self._place(value, [part[index] for part in wanted]) if name else None
                for index, (name, value) in enumerate(zip(node.outputs, outputs, strict=False))
            ]
        except _FAILURES:
            return None

    def _place(self, value: Any, parts: list[Any]) -> Place | None:
        """Where the value has the samples of the parts; None where it is the same for all of them.

        Raises:
            ValueError: if it is not made of them.
        """
        if isinstance(value, np.ndarray):  # sizes are what they are at this many rows
            return None
        parts = [part if isinstance(part, torch.Tensor) else torch.as_tensor(part) for part in parts]
        own = tuple(parts[0].shape)
        if tuple(value.shape) == own and all(_is_equal(value, part) for part in parts):
            return None
        grown = [axis for axis, size in enumerate(own) if value.shape[axis] != size] if value.ndim == len(own) else []
        if len(grown) == 1 and value.shape[grown[0]] == own[grown[0]] * len(parts):
            axis, length = grown[0], own[grown[0]]
            for outer in range(1, length // self._batch + 1):
                if length % (outer * self._batch) == 0 and _is_made_of(value, parts, axis, outer):
                    return Place(axis, outer)
        raise ValueError("the samples are mixed")

    def _candidates(self, node: Node) -> Iterator[tuple[Edit, ...]]:
        places = {slot: self._places.get(name) for slot, name in enumerate(node.inputs)}
        first = places.get(0)
        if node.op == "Reshape" and first is not None:
            yield from self._reshapings(node, first)
            return
        edits = tuple(self._repetitions(node, {slot: place for slot, place in places.items() if place is not None}))
        if node.op in ("LSTM", "GRU", "RNN"):  # never tried in vain: torch ends the process where states do not fit
            is_plain = not any(places.values())
            if is_plain or any(edit.slot == 0 for edit in edits) or first == Place(self._recurrent(node)[0]):
                yield edits
            return
        yield ()
        if first is not None and node.op in ("Expand", "Slice", "Resize"):
            yield from self._renumberings(node, first)
        if edits:
            yield edits
        if first is not None and node.op == "Gather" and not places.get(1):
            yield from self._indexings(node, first)

    def _indexings(self, node: Node, place: Place) -> Iterator[tuple[Edit, ...]]:
        """The ways in which indices may point into each sample's own stretch of the axis that they index."""
        source = self._shape(node.inputs[0])
        if place == Place(node.attributes.get("axis", 0) % len(source)):
            stride = source[place.axis] // self._batch
            for axis, size in enumerate(self._shape(node.inputs[1])):
                if size == self._batch:
                    yield (Within(1, axis, self._batch, stride),)

    def _reshapings(self, node: Node, place: Place) -> Iterator[tuple[Edit, ...]]:
        """The ways to reshape, those with an axis of the samples alone first, and among them the axis that it was."""
        source, target = self._shape(node.inputs[0]), self._shape(node.outputs[0])
        numbers = self._known(node.inputs[1])
        is_computed = node.inputs[1] not in self._network.tensors
        before = math.prod(source[: place.axis]) * place.outer
        found: list[tuple[tuple[bool, bool, int], tuple[Edit, ...]]] = []
        for axis, size in enumerate(target):
            ahead = math.prod(target[:axis])
            if not size or before % ahead or size % (before // ahead * self._batch):
                continue
            others = [number for index, number in enumerate(numbers) if index != axis]
            number = None if -1 in others else -1
            edit: tuple[Edit, ...] = (Number(1, axis, number, size // self._batch),)
            rank = (size != self._batch, axis != place.axis, axis)
            is_right = numbers[axis] in (-1, 0) or (is_computed and numbers[axis] == size // self._batch * self._rows)
            found.append((rank, () if is_right else edit))
        yield from (edits for _, edits in sorted(found, key=lambda entry: entry[0]))
        yield ()

    def _renumberings(self, node: Node, place: Place) -> Iterator[tuple[Edit, ...]]:
        edit: Number | None = None
        if node.op == "Expand":
            index = place.axis + len(self._known(node.inputs[1])) - len(self._shape(node.inputs[0]))
            edit = Number(1, index, 1)
        elif node.op == "Slice" and len(node.inputs) > 2:
            index = self._index(node, place.axis, self._known(node.inputs[3]) if len(node.inputs) > 3 else None)
            edit = Number(2, index, int(_LAST))
        elif node.op == "Resize" and len(node.inputs) > 3 and node.inputs[3]:
            index = self._index(node, place.axis, node.attributes.get("axes"))
            edit = Number(3, index, None, self._shape(node.outputs[0])[place.axis] // self._batch)
        if edit is not None and edit.index >= 0:
            yield (edit,)

    def _index(self, node: Node, axis: int, axes: Any) -> int:
        """Where an axis stands in the list of axes of the node, all of them in order if there is none; -1: nowhere."""
        if axes is None:
            return axis
        rank = len(self._shape(node.inputs[0]))
        listed = [int(number) % rank for number in np.asarray(axes).reshape(-1)]
        return listed.index(axis) if axis in listed else -1

    def _repetitions(self, node: Node, places: Mapping[int, Place]) -> Iterator[Edit]:
        """Values without samples are repeated where the others have them; those of recurrent operators have their places."""
        if node.op in ("LSTM", "GRU", "RNN"):
            wanted = self._recurrent(node)
        else:
            first = next(iter(places.items()), None)
            if first is None:
                return
            rank, axis = len(self._shape(node.inputs[first[0]])), first[1].axis
            slots = operator_of(node).data or range(len(node.inputs))
            wanted = {
                slot: axis for slot in slots if slot < len(node.inputs) and len(self._shape(node.inputs[slot])) == rank
            }
        for slot, axis in wanted.items():
            shape = self._shape(node.inputs[slot]) if slot < len(node.inputs) and node.inputs[slot] else ()
            if axis >= len(shape) or shape[axis] != self._batch:
                continue
            if slot not in places:
                yield Spread(slot, axis, self._batch)
            elif places[slot].axis != axis and self._batch == 1 == shape[places[slot].axis]:
                yield Move(slot, places[slot].axis, axis)

    def _recurrent(self, node: Node) -> Mapping[int, int]:
        return dict.fromkeys(_RECURRENT, 0) if node.attributes.get("layout", 0) else _RECURRENT

    def _gives(self, name: str) -> bool:
        """Whether an output has its rows along the first axis, or can be given them there."""
        shape, place = self._shape(name), self._places.get(name)
        if not isinstance(self._together.get(name), torch.Tensor) or not shape:
            return False
        if place == Place(0):
            return True
        if shape[0] != self._batch:
            return False
        if place is None:
            self.found.outputs[name] = Spread(0, 0, self._batch)
        elif self._batch == 1 == shape[place.axis]:
            self.found.outputs[name] = Move(0, place.axis, 0)
        else:
            return False
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.found.shapes[name] if name else ()

    def _known(self, name: str) -> np.ndarray:
        value = self._together.get(name, self._network.tensors.get(name))
        if not isinstance(value, np.ndarray):
            raise ValueError(f"'{name}' is no vector of known numbers")
        return value

    def _value(self, name: str) -> torch.Tensor:
        value = self._together[name] if name in self._together else self._constants(name)
        return value if isinstance(value, torch.Tensor) else torch.as_tensor(value)


def _is_made_of(value: torch.Tensor, parts: list[torch.Tensor], axis: int, outer: int) -> bool:
    """Whether the value is the parts one after the other within each of `outer` equal stretches of the axis."""
    before, after = value.shape[:axis], value.shape[axis + 1 :]
    together = value.reshape(*before, outer, len(parts), -1, *after)
    return all(
        _is_equal(together.select(axis + 1, number), part.reshape(*before, outer, -1, *after))
        for number, part in enumerate(parts)
    )


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point() or not a.numel():
        return a.shape == b.shape and bool((a == b).all())
    scale, apart = _largest(b), _largest(a - b)
    if math.isfinite(scale) and math.isfinite(apart):
        return apart <= _TOLERANCE * scale
    finite = b[torch.isfinite(b)]
    scale = _largest(finite) if finite.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True))


def _largest(tensor: torch.Tensor) -> float:
    """The largest magnitude, which `aminmax` finds several times faster than a norm; not finite where an element is not."""
    least, most = tensor.aminmax()
    return max(-float(least), float(most)) if torch.isfinite(least) and torch.isfinite(most) else math.inf
