"""The few ways in which channels pass through an operator: the vocabulary of every channel rule.

A rule is written once in these verbs and walked twice: the analysis (`channels.py`) finds out with it which channels
belong together, and the surgery (`surgery.py`) replays it on a cut network to learn which channel lies where now.
Slots are input slots of the node; an axis may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from worker.compressor.graph.network import Node

#: Blocks (of a group normalisation) up to this size go as a whole, which is exact; longer ones get narrower, and so do
#: short ones where fewer than these could go: heads of attention, which all stay, or a few groups.
SHORT_BLOCK = 16
FEWEST_BLOCKS = 4
#: An input slot and an axis of the tensor in it.
Place = tuple[int, int]


class Walk(Protocol):
    """One walk over the network in topological order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value in the uncut network, at the sample shapes."""
        ...

    def is_weight(self, name: str) -> bool:
        """Whether the value is a constant, or made from constants alone."""
        ...

    def numbers(self, node: Node, slot: int) -> list[int] | None:
        """The known numbers of an input (axes, sizes, starts), None where there are none."""
        ...

    def consume(self, node: Node, x: Place, weight: Place, *, slides: Sequence[int] = (), parts: int = 1) -> None:
        """Sum over the channels of `x`, each with its slice of the weight. Labels on other axes stay where they are.

        `slides`: axes over which the operator slides or mixes, where labels may not differ. `parts`: the channels fall
        into this many equal parts, each consumed by its own equal part of the weight's axis 0 (by that axis, if it is 0).
        """
        ...

    def produce(self, node: Node, weight: Place, axis: int, *, also: Sequence[Place] = (), parts: int = 1) -> None:
        """The output's `axis` is made by the weight's axis; `also` names biases along it. Equal numbers per part.

        An axis other than 0 makes the output once for each of the `parts` of axis 0, one after the other.
        """
        ...

    def follow(self, node: Node, x: Place, weights: Sequence[Place], *, slides: Sequence[int] = ()) -> None:
        """Each channel of `x` goes on by itself, with its own entries of the weights.

        Where a weight has r times as many entries as `x` has channels, each channel makes r outputs in turn.
        """
        ...

    def keep(self, node: Node, *, slides: Sequence[int] = ()) -> None:
        """Every element stays where it is (activations, pooling); `slides` as in `consume`."""
        ...

    def join(self, node: Node) -> None:
        """Elementwise with broadcasting: what meets belongs together."""
        ...

    def move(self, node: Node, *, slides: Sequence[int] = ()) -> None:
        """Elements only change places: the operator itself is run on tensors of labels."""
        ...

    def concatenate(self, node: Node, axis: int) -> None:
        """The inputs one after the other along the axis."""
        ...

    def recur(
        self, node: Node, *, vectors: Sequence[int], states: Sequence[Place], places: Sequence[tuple[int, int]]
    ) -> None:
        """Hidden units: made from the last axis of input 0 by W (slot 1) and from themselves by R (slot 2).

        W is `[directions, gates × units, inputs]`, R `[directions, gates × units, units]`, `vectors` are slots of
        `[directions, blocks × units]`. `states` are initial states with the axis of their directions, `places` give
        for each output the axes of directions and units. Equal numbers of units per direction.
        """
        ...

    def reduce(self, node: Node, axes: Sequence[int], *, keepdims: bool, adds: bool = False) -> None:
        """Combine over the axes, whose labels end here; other labels go on.

        A cut along them is inexact, but where the operator only `adds` and removed channels are zero.
        """
        ...

    def close(self, node: Node, axes: Sequence[int], why: str) -> None:
        """The operator mixes along the axes, so that channels there have to stay; the shape does not change."""
        ...

    def multiply(
        self,
        node: Node,
        slots: tuple[int, int],
        terms: tuple[tuple[int, ...], tuple[int, ...]],
        result: tuple[int, ...],
    ) -> None:
        """Multiply two activations, axis by axis as the letters say, and sum over those that `result` lacks.

        `terms` has one number per axis of each operand, `result` one per axis of the output; equal numbers are one axis.
        """
        ...

    def bind(self, node: Node, axis: int, length: int) -> None:
        """Along this axis of input 0 each run of that many channels goes as a whole. To be said before it is moved."""
        ...

    def weigh(
        self,
        node: Node,
        slots: tuple[int, int],
        terms: tuple[tuple[int, ...], tuple[int, ...]],
        result: tuple[int, ...],
    ) -> None:
        """Multiply an activation (the first slot) with a constant, axis by axis as in `multiply`.

        Where axis 0 of the constant is one of heads, the channels of each head are its own, equal numbers of them.
        """
        ...

    def attend(self, node: Node, heads: tuple[int, int]) -> None:
        """Inputs 0 to 2 are queries, keys and values in heads, of which `heads` are the numbers: of queries, of the others.

        Channels of a query go with those of its key, those of a value go on. Every head loses the same number.
        """
        ...

    def rotate(self, node: Node, heads: int) -> None:
        """Turn pairs of channels of each head of input 0 by the angles whose cosines and sines inputs 1 and 2 hold.

        All heads are turned alike, so that a pair goes from all of them at once, with its angle.
        """
        ...

    def normalise(
        self,
        node: Node,
        x: int,
        axes: Sequence[int],
        weights: Sequence[Place] = (),
        *,
        whole: bool = True,
        does: str = "normalises",
    ) -> None:
        """Normalise the value in slot `x` over its axes: a cut along them is inexact.

        `weights`: slots of scales and biases, each with the axis of the value at which its axis 0 stands. `whole`: short
        blocks that are normalised by themselves go as a whole, which is exact; else they get narrower like long ones.
        `does`: what the node does over the axes instead, that changes every channel with one that goes.
        """
        ...

    def normalise_blocks(self, node: Node, blocks: int, weights: Sequence[int]) -> None:
        """Normalise the channels of axis 1 in this many equal blocks, each by itself; `weights` have an entry per channel."""
        ...

    def pick(self, node: Node, axes: Sequence[int], more: int) -> None:
        """Take slices along axes side by side by numbers that are data (an embedding); labels along other axes go on.

        In the output `more` axes stand where these were.
        """
        ...

    def pin(self, node: Node, why: str) -> None:
        """Every channel that reaches the node has to stay."""
        ...


def sliding_axes(walk: Walk, node: Node, kernel: Sequence[int]) -> list[int]:
    """The axes along which a position of the output is not of the same position of the input alone."""
    before, after = (walk.shape(name)[2:] for name in (node.inputs[0], node.outputs[0]))
    return [2 + axis for axis, size in enumerate(kernel) if size > 1 or before[axis] != after[axis]]
