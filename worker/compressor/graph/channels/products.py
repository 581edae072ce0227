"""Verbs for what mixes channels without a weight between them: products of two activations, normalisation, picking.

Attention is such a product: its heads' inner axis is summed over, and what is removed there has to be removed from both
operands. A product is described by letters, as in Einstein's notation: a tuple of small numbers for each operand's axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.compressor.graph.channels.heads import attend, rotate
from worker.compressor.graph.channels.labels import Labels
from worker.compressor.graph.channels.layer import Layer, Term, layer_along, lettered, placed, rows_of
from worker.compressor.graph.channels.weighing import weigh
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import operator_of
from worker.compressor.graph.walk import Place

#: Their output along an axis is not zero because one of the operands is.
_ADDING = {"Add", "Sub", "Sum", "Mean", "Max", "Min", "Where"}
_NO_TABLE = np.empty(0)


class Products(Labels):
    """Labels with the verbs that need more than one activation, or none of the weights: all that `walk.Walk` has."""

    def walk(self) -> None:
        """Carry labels through all nodes. Nodes that compute shapes carry none."""
        for node in self.network.nodes:
            stretches = self.stretched.get(node.outputs[0], ())
            of_constants = all(not name or self.is_weight(name) or name in self._fixed for name in node.inputs)
            known = all(name in self.facts.known or not name for name in node.outputs)
            if known and not stretches and not self._has_channels(node):
                self._calculate(node)
                self._fixed.update(node.outputs if of_constants else ())
                continue
            if of_constants:
                self._derived.update(node.outputs)
            rule = operator_of(node).channels
            if rule is None:
                self.pin(node, f"{node.op} '{node.name}' has no channel rule")
            else:
                rule(self, node)
            for stretch in stretches:
                made = Layer(self._made(node.outputs[0], stretch), *stretch)
                self.layers[node.outputs[0]] = [*self._layers(node.outputs[0]), made]
            for output in filter(None, node.outputs):
                self._drop_single(output)
            if node.outputs[0] in self._derived and self._adds(node):
                self._sums.update(node.outputs)
            self._passed(node)

    def _adds(self, node: Node) -> bool:
        """Whether a node among constants adds several with channels, or goes on with what does."""
        labelled = [name for name in node.inputs if self._layers(name)]
        adds = len(node.inputs) > 2 if node.op == "Gemm" else node.op in _ADDING and len(labelled) > 1
        return adds or any(name in self._sums for name in labelled)

    def _has_channels(self, node: Node) -> bool:
        """Whether a node that computes with known numbers does so with a table of the network (frequencies, say)."""
        known = [self.facts.known[name] for name in node.outputs if name]
        return all(is_float(array) for array in known) and any(
            self._layers(name) or self.network.tensors.get(name, _NO_TABLE).size > 1 for name in node.inputs
        )

    def _drop_single(self, name: str) -> None:
        """A value that holds one channel alone cannot lose it."""
        for layer in self._layers(name):
            if not layer.axes and layer.array.any():
                self._pin(layer.array, "a value holds this channel alone")
        self.layers[name] = [layer for layer in self._layers(name) if layer.axes]

    def multiply(self, node: Node, slots: tuple[int, int], terms: tuple[Term, Term], result: Term) -> None:
        """Multiply two activations and sum over the letters that `result` lacks; see `walk.Walk`."""
        names = (node.inputs[slots[0]], node.inputs[slots[1]])
        count = max((*terms[0], *terms[1])) + 1
        left, right = (
            [lettered(layer, term, count) for layer in self._layers(name)]
            for name, term in zip(names, terms, strict=True)
        )
        summed = set(terms[0]) & set(terms[1]) - set(result)
        alone = (set(terms[0]) ^ set(terms[1])) - set(result)
        for layer in [layer for layer in (*left, *right) if alone & set(layer.axes)]:
            self._pin(layer.array, f"{node.op} '{node.name}' sums over them")
        self._sum_over(node, names, left, right, summed)
        going_on = self._side_by_side(node, names, terms, left, right, summed | alone)
        self.layers[node.outputs[0]] = [placed(layer, result) for layer in going_on]

    def bind(self, node: Node, axis: int, length: int) -> None:
        """Channels go in runs; see `walk.Walk`."""
        for layer in self._layers(node.inputs[0]):
            if axis in layer.axes:
                line = np.moveaxis(layer.array, axis, -1)
                for place in range(1, length):
                    beside = line[..., place::length]
                    self._meet(beside, line[..., ::length][..., : beside.shape[-1]])

    def weigh(self, node: Node, slots: tuple[int, int], terms: tuple[Term, Term], result: Term) -> None:
        """Multiply an activation with a constant by letters; see `walk.Walk`."""
        weigh(self, node, slots, terms, result)

    def attend(self, node: Node, heads: tuple[int, int]) -> None:
        """Queries, keys and values in heads; see `walk.Walk`."""
        attend(self, node, heads)

    def rotate(self, node: Node, heads: int) -> None:
        """Pairs of channels turned by angles; see `walk.Walk`."""
        rotate(self, node, heads)

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
        """Normalise over axes; see `walk.Walk`."""
        source, rank = node.inputs[x], len(self.shape(node.inputs[x]))
        closed = {axis % rank for axis in axes}
        self._label_all(source)
        found = []
        self._label_all(source)
        for layer in self._layers(source):
            inside = closed & set(layer.axes)
            if (
                inside
                and inside != set(layer.axes)
                and (layer.narrowed not in inside or (whole and self._goes_whole(source, layer, inside)))
            ):
                layer = self._settled(layer, off=inside)
            elif inside:
                self._inexact(layer.array, f"{node.op} '{node.name}' {does} over them")
            found.append(layer)
        self.layers[source] = found
        self.layers[node.outputs[0]] = list(found)
        for slot, axis in weights:
            if slot < len(node.inputs) and node.inputs[slot]:
                self._follow_along(node, source, slot, axis % rank)

    def _follow_along(self, node: Node, source: str, slot: int, first: int) -> None:
        """A weight whose axis 0 stands at axis `first` of the value: its entries go with the channels."""
        name = node.inputs[slot]
        shape, rank = self.shape(name), len(self.shape(source))
        there = (1,) * first + shape + (1,) * (rank - first - len(shape))
        for layer in self._layers(source):
            if there[layer.narrowed] == 1:
                continue
            if not self.is_weight(name):
                self._pin(layer.array, f"'{node.name}' takes its scale from data")
                continue
            rows = rows_of(layer, there, first)
            order = self._settled(layer, off=set(layer.axes) - {layer.narrowed}).line() if rows is None else rows
            self._mark(node, "follows", self._match(name, layer.narrowed - first, order))

    def normalise_blocks(self, node: Node, blocks: int, weights: Sequence[int]) -> None:
        """Normalise blocks of channels; see `walk.Walk`."""
        source, output = node.inputs[0], node.outputs[0]
        size = self.shape(source)[1] // blocks
        self._settle(source, range(2, len(self.shape(source))))
        labels = self._along(source, 1)
        self.layers[output] = list(self._layers(source))
        if labels is None:
            return
        if self.goes_by_blocks(source, blocks):
            rows = labels.reshape(-1, size)
            self._meet(rows, rows[:, :1])
        else:
            rows = labels.reshape(blocks, -1)
            self._inexact(rows, f"{node.op} '{node.name}' normalises over them")
            self._quota(rows)
        for slot in weights:
            if not self.is_weight(node.inputs[slot]):
                self._pin(labels, f"'{node.name}' takes its scale from data")
            else:
                self._mark(node, "follows", self._match(node.inputs[slot], 0, labels))

    def pick(self, node: Node, axes: Sequence[int], more: int) -> None:
        """Take whole slices by numbers that are data (an embedding); see `walk.Walk`."""
        source, output = node.inputs[0], node.outputs[0]
        first, longer = axes[0], more - len(axes)
        if source in self.network.tensors:
            made = [
                layer_along(self._own(source, other), other, len(self.shape(source)))
                for other, length in enumerate(self.shape(source))
                if other not in axes and length > 1
            ]
            for layer in made:
                self._mark(node, "produces", layer.array.reshape(-1))
        else:
            made = self._layers(source)
        going_on = []
        for layer in made:
            if layer.narrowed in axes:
                self._pin(layer.array, f"{node.op} '{node.name}' picks them by data")
                continue
            layer = self._settled(layer, off=set(axes) & set(layer.axes))
            array = np.expand_dims(layer.array.squeeze(tuple(axes)), tuple(range(first, first + more)))
            places = tuple(a + longer if a > first else a for a in layer.axes)
            narrows = layer.narrowed + longer if layer.narrowed > first else layer.narrowed
            going_on.append(Layer(array, places, narrows))
        self.layers[output] = going_on

    def _sum_over(
        self, node: Node, names: tuple[str, str], left: list[Layer], right: list[Layer], summed: set[int]
    ) -> None:
        ours, theirs = ([layer for layer in side if summed & set(layer.axes)] for side in (left, right))
        if not ours or not theirs:
            for layer in (*ours, *theirs):
                other = names[1] if ours else names[0]
                self._pin(layer.array, f"{node.op} '{node.name}' multiplies them with '{other}', which is not narrowed")
            return
        shared = {a for layer in ours for a in layer.axes} & {a for layer in theirs for a in layer.axes}
        settled = [self._settled(layer, off=set(layer.axes) - shared - summed) for layer in (*ours, *theirs)]
        for layer in settled[1:]:
            self._meet(settled[0].array, layer.array)
        for layer in settled:
            self._contract(node, layer.array, names)

    def _side_by_side(
        self,
        node: Node,
        names: tuple[str, str],
        terms: tuple[Term, Term],
        left: list[Layer],
        right: list[Layer],
        ended: set[int],
    ) -> list[Layer]:
        """The layers that go on: rows of one operand, columns of the other, and what both have in each matrix."""
        both = set(terms[0]) & set(terms[1])
        ours, theirs = ([layer for layer in side if not ended & set(layer.axes)] for side in (left, right))
        going_on: list[Layer] = []
        for side, others, other in ((ours, theirs, names[1]), (theirs, ours, names[0])):
            for layer in side:
                if layer.narrowed in both:
                    partners = [mate for mate in others if mate.narrowed == layer.narrowed]
                    for mate in partners:
                        self._meet(layer.array, mate.array)
                    if not partners:
                        why = f"{node.op} '{node.name}' multiplies them with '{other}', which is not narrowed"
                        self._pin(layer.array, why)
                    if side is theirs or not partners:
                        continue
                going_on.append(layer)
        return going_on
