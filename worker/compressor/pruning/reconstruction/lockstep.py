"""One pass through the original and the cut network side by side, refitting each layer of the cut one on the way.

The target is the original's activation, the input is what the already refitted layers before give, so errors do not add
up. Only live tensors are held: the cost is one forward pass of each network and one linear system per layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from worker.compressor.graph.evaluation import Stepper, shared_tensor
from worker.compressor.graph.network import Network, Node
from worker.compressor.pruning.reconstruction.fitting import MAX_INPUTS, Aim, fit
from worker.compressor.pruning.reconstruction.layers import LinearLayer, kept_outputs, linear_layer
from worker.compressor.pruning.reconstruction.moments import matched
from worker.compressor.pruning.reconstruction.tails import BiasedTail, NormalisedTail, Tail


@dataclass
class Repair:
    """The layers that were refitted or corrected in mean and variance, and the normalisations that were measured anew."""

    refitted: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)


def reconstruct(
    original: Network,
    cut: Network,
    feeds: Mapping[str, np.ndarray],
    *,
    refit: bool,
    batchnorm: bool,
    masked: frozenset[str] = frozenset(),
    untouched: frozenset[str] = frozenset(),
    only: frozenset[str] | None = None,
    num_plain: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Network, Repair]:
    """A copy of `cut` whose layers answer like those of `original` on `feeds`, as far as their weights allow.

    `refit` solves each Conv, Gemm and MatMul by least squares; `batchnorm` measures BatchNorm statistics anew and, where
    nothing is refitted, gives layers without BatchNorm behind them the mean and variance of the original's outputs. Layers
    whose inputs are what they were are left alone, and so are weights that several nodes share. The zeros of the tensors
    that `masked` names stay zeros: what is left of these is fitted even where the inputs are what they were. The tensors
    that `untouched` names stay as they are. `only` names the nodes that may be repaired; the walk ends with the last of
    them. Of the rows the first `num_plain` are as the data has them: what is measured, and not fitted, is measured on these.
    """
    if not refit:
        feeds = {name: feed[:num_plain] for name, feed in feeds.items()}
    pass_ = _Lockstep(original, cut.copy(), feeds, refit, batchnorm, masked, untouched, num_plain)
    nodes = pass_.student.network.nodes
    if only is not None:
        nodes = nodes[: 1 + max((at for at, node in enumerate(nodes) if node.name in only), default=-1)]
    with torch.inference_mode():
        for done, node in enumerate(nodes):
            pass_.advance(node, is_mended=only is None or node.name in only)
            progress((done + 1) / len(nodes))
    return pass_.student.network, pass_.repair


class _Lockstep:
    """The two walks, and what was repaired so far."""

    def __init__(
        self,
        original: Network,
        network: Network,
        feeds: Mapping[str, np.ndarray],
        refit: bool,
        batchnorm: bool,
        masked: frozenset[str],
        untouched: frozenset[str],
        num_plain: int | None,
    ) -> None:
        tensors = {name: shared_tensor(np.ascontiguousarray(feed)) for name, feed in feeds.items()}
        self.teacher, self.student = Stepper(original, tensors), Stepper(network, dict(tensors))
        self.repair = Repair()
        self._refit, self._batchnorm, self._masked = refit, batchnorm, masked
        self._untouched, self._num_plain = untouched, num_plain
        self._common = {node.outputs[0] for node in original.nodes}
        self._readers: dict[str, list[Node]] = {}
        for node in network.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {port.name for port in network.outputs}
        self._uses = Counter(name for node in network.nodes for name in node.inputs)

    def advance(self, node: Node, *, is_mended: bool) -> None:
        """Evaluate the node whose turn it is, once it is repaired where it is one that may be."""
        pair = self._catch_up(node) if node.outputs[0] in self._common else None
        if pair is not None and is_mended:
            before, target = pair
            x = self.student.inputs(node)[0]
            is_masked = not self._masked.isdisjoint(node.inputs)
            if isinstance(x, Tensor) and (is_masked or not (x.shape == before.shape and torch.equal(x, before))):
                self._mend(node, x, before, target)
        self.student.step()

    def _catch_up(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """The original's first input and output of the same node, whose nodes until there are evaluated."""
        while (other := self.teacher.peek()) is not None:
            first = self.teacher.inputs(other)[0] if other.inputs else None
            output = self.teacher.step()[0]
            if other.outputs[0] == node.outputs[0]:
                return (first, output) if isinstance(first, Tensor) and isinstance(output, Tensor) else None
        return None

    def _mend(self, node: Node, x: Tensor, before: Tensor, target: Tensor) -> None:
        if not self._may_change(node):
            return
        if self._batchnorm and self._has_statistics(node) and node.name not in self.repair.measured:
            self._measure(node, x[: self._num_plain])
        layer = linear_layer(node, self.student.network)
        if layer is None or not _has_same_positions(layer, x, before):
            return
        if self._refit:
            tail = self._tail(layer)
            mask = None
            if layer.weight in self._masked:
                mask = layer.matrix(shared_tensor(self.student.network.tensors[layer.weight])) != 0
            for name, array in fit(tail, x, self._aim(tail, target), mask).items():
                self.student.set_weight(name, array)
            self.repair.refitted.append(node.name)
        elif self._batchnorm and not self._is_normalised(node):
            self._correct(self._tail(layer), target)

    def _is_normalised(self, node: Node) -> bool:
        """Whether a BatchNorm right behind is measured in its turn."""
        reader = self._only_reader(node.outputs[0])
        return reader is not None and self._has_statistics(reader)

    def _correct(self, tail: Tail, target: Tensor) -> None:
        """Mean and variance of the outputs as they are in the original, where there is a bias to shift."""
        if not tail.has_bias:
            return
        kept = kept_outputs(tail.layer, self.student.network)
        wanted = tail.target(_at(target, tail.layer, kept), self.teacher.network, kept)
        for name, array in matched(tail, self.student.compute()[0], wanted).items():
            self.student.set_weight(name, array)
        self.repair.corrected.append(tail.layer.node.name)

    def _has_statistics(self, node: Node) -> bool:
        """Whether it is a BatchNorm with a running mean and variance; some compute them from the data."""
        tensors = self.student.network.tensors
        return node.op == "BatchNormalization" and all(name in tensors for name in node.inputs[3:5])

    def _may_change(self, node: Node) -> bool:
        """Whether its weights may change, and no other node reads them."""
        own = [name for name in node.inputs if name in self.student.network.tensors]
        return all(self._uses[name] == 1 and name not in self._untouched for name in own)

    def _tail(self, layer: LinearLayer) -> Tail:
        """The layer with the bias or BatchNorm behind it, where that reads nothing else and has plain float32 vectors."""
        network, reader = self.student.network, self._only_reader(layer.node.outputs[0])
        if reader is None or not self._may_change(reader):
            return Tail(layer, network)
        vector = next((name for name in reader.inputs if name in network.tensors), "")
        if (
            reader.op == "Add"
            and layer.bias is None
            and layer.channel_axis == -1
            and self._are_vectors([vector], layer)
        ):
            return BiasedTail(layer, network, reader, vector)
        is_norm = reader.op == "BatchNormalization" and layer.channel_axis == 1 and layer.num_inputs <= MAX_INPUTS
        if not is_norm or not self._are_vectors(reader.inputs[1:5], layer):
            return Tail(layer, network)
        if self._batchnorm:
            self.repair.measured.append(reader.name)
        return NormalisedTail(layer, network, reader, self._batchnorm)

    def _are_vectors(self, names: Sequence[str], layer: LinearLayer) -> bool:
        """Whether all are float32 constants with a number for each output."""
        vectors, length = [self.student.network.tensors.get(name) for name in names], layer.num_outputs
        return all(v is not None and v.dtype == np.float32 and v.shape == (length,) for v in vectors)

    def _aim(self, tail: Tail, output: Tensor) -> Aim:
        """What should come out: where an Add or a ReLU is right behind, what counts is what comes out there."""
        kept = kept_outputs(tail.layer, self.student.network)
        wanted = tail.target(_at(output, tail.layer, kept), self.teacher.network, kept)
        reader = self._only_reader(tail.output)
        if reader is None or reader.op != "Add":
            return Aim(wanted, None, reader is not None and reader.op == "Relu")
        branches = self._branches(reader, tail)
        if branches is None or branches[0].shape != wanted.shape:
            return Aim(wanted)
        ours, theirs = branches
        readers = self._readers.get(reader.outputs[0], [])
        return Aim(wanted + theirs, ours, bool(readers) and all(other.op == "Relu" for other in readers))

    def _only_reader(self, name: str) -> Node | None:
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _branches(self, add: Node, tail: Tail) -> tuple[Tensor, Tensor] | None:
        """The other operand of an Add, ours and the original's, where both are computed already."""
        other = next((operand for operand in add.inputs if operand != tail.output), None)
        if other is None or other not in self.student.env or other not in self.teacher.env:
            return None
        ours, theirs = self.student.env[other], self.teacher.env[other]
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.ndim != theirs.ndim:
            return None
        kept = kept_outputs(tail.layer, self.student.network)
        axis = tail.layer.channel_axis
        if kept is not None and theirs.shape[axis] == ours.shape[axis]:
            return None  # broadcast along the channels: it was not cut with them
        theirs = _at(theirs, tail.layer, kept)
        return (ours, theirs) if theirs.shape == ours.shape else None

    def _measure(self, node: Node, x: Tensor) -> None:
        """Running mean and variance as they are on these samples."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.double(), axes, correction=0)
        for name, value in ((node.inputs[3], mean), (node.inputs[4], variance)):
            dtype = self.student.network.tensors[name].dtype
            self.student.set_weight(name, value.numpy().astype(dtype))
        self.repair.measured.append(node.name)


def _has_same_positions(layer: LinearLayer, x: Tensor, before: Tensor) -> bool:
    """Whether only channels went: where positions did (a filter that slides over channels), there is no row to compare with."""
    mine, theirs = list(x.shape), list(before.shape)
    if len(mine) == len(theirs):
        mine[layer.channel_axis] = theirs[layer.channel_axis]
    return mine == theirs


def _at(output: Tensor, layer: LinearLayer, kept: np.ndarray | None) -> Tensor:
    return output if kept is None else output.index_select(layer.channel_axis, torch.from_numpy(kept))
