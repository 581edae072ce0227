"""One pass through the original and the cut network side by side, refitting each layer of the cut one on the way.

The target is the original's activation, the input is what the already refitted layers before give, so errors do not add
up. Only live tensors are held: the cost is one forward pass of each network and one linear system per layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from worker.compressor.graph.evaluation import Stepper
from worker.compressor.graph.network import Network, Node
from worker.compressor.pruning.reconstruction.layers import LinearLayer, linear_layer
from worker.compressor.pruning.reconstruction.least_squares import Gram, solve_wide
from worker.compressor.pruning.reconstruction.rectified import PENALTIES, auxiliary

# Beyond this width a system of rows is smaller than one of inputs.
MAX_INPUTS = 2048
MAX_WIDE_ROWS = 2048
PIECE_ELEMENTS = 16 << 20
GRAM_OPERATIONS = 4e10


@dataclass
class Repair:
    """The layers that were refitted, and the normalisations that were measured anew."""

    refitted: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)


def reconstruct(
    original: Network,
    cut: Network,
    feeds: Mapping[str, np.ndarray],
    *,
    refit: bool,
    batchnorm: bool,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Network, Repair]:
    """A copy of `cut` whose layers answer like those of `original` on `feeds`, as far as their weights allow.

    `refit` solves each Conv, Gemm and MatMul by least squares; `batchnorm` measures BatchNorm statistics anew. Layers
    whose inputs are what they were are left alone, and so are weights that several nodes share.
    """
    pass_ = _Lockstep(original, cut.copy(), feeds, refit, batchnorm)
    with torch.inference_mode():
        for done, node in enumerate(pass_.student.network.nodes):
            pass_.advance(node)
            progress((done + 1) / len(pass_.student.network.nodes))
    return pass_.student.network, pass_.repair


@dataclass(frozen=True)
class _Aim:
    """What should come out: `wanted`, of which another branch gives `branch`; below zero it does not count if rectified."""

    wanted: Tensor
    branch: Tensor | None = None
    is_rectified: bool = False

    def own(self, piece: slice) -> Tensor:
        """The layer's own part of it."""
        return self.wanted[piece] if self.branch is None else self.wanted[piece] - self.branch[piece]


class _Lockstep:
    """The two walks, and what was repaired so far."""

    def __init__(
        self, original: Network, network: Network, feeds: Mapping[str, np.ndarray], refit: bool, batchnorm: bool
    ) -> None:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(feed)) for name, feed in feeds.items()}
        self.teacher, self.student = Stepper(original, tensors), Stepper(network, dict(tensors))
        self.repair = Repair()
        self._refit, self._batchnorm = refit, batchnorm
        self._common = {node.outputs[0] for node in original.nodes}
        self._readers: dict[str, list[Node]] = {}
        for node in network.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {port.name for port in network.outputs}
        self._uses = Counter(name for node in network.nodes for name in node.inputs)

    def advance(self, node: Node) -> None:
        """Repair the node whose turn it is, then evaluate it."""
        pair = self._catch_up(node) if node.outputs[0] in self._common else None
        if pair is not None:
            before, target = pair
            x = self.student.inputs(node)[0]
            if isinstance(x, Tensor) and not (x.shape == before.shape and torch.equal(x, before)):
                self._mend(node, x, target)
        self.student.step()

    def _catch_up(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """The original's first input and output of the same node, whose nodes until there are evaluated."""
        while (other := self.teacher.peek()) is not None:
            first = self.teacher.inputs(other)[0] if other.inputs else None
            output = self.teacher.step()[0]
            if other.outputs[0] == node.outputs[0]:
                return (first, output) if isinstance(first, Tensor) and isinstance(output, Tensor) else None
        return None

    def _mend(self, node: Node, x: Tensor, target: Tensor) -> None:
        weights = [name for name in node.inputs if name in self.student.network.tensors]
        if any(self._uses[name] > 1 for name in weights):
            return
        if self._batchnorm and node.op == "BatchNormalization":
            self._measure(node, x)
        layer = linear_layer(node, self.student.network) if self._refit else None
        if layer is not None:
            self._solve(layer, x, self._aim(node, layer, target))

    def _aim(self, node: Node, layer: LinearLayer, target: Tensor) -> _Aim:
        """What the layer should give: where an Add or a ReLU is right behind, what counts is what comes out there."""
        wanted, branch = _kept(target, layer, self.student.network), None
        reader = self._only_reader(node)
        if reader is not None and reader.op == "Add":
            branch = self._branches(reader, node.outputs[0], layer, wanted)
            if branch is None:
                return _Aim(wanted)
            wanted = wanted + branch[1]
            readers = self._readers.get(reader.outputs[0], [])
            is_rectified = bool(readers) and all(other.op == "Relu" for other in readers)
            return _Aim(wanted, branch[0], is_rectified)
        return _Aim(wanted, None, reader is not None and reader.op == "Relu")

    def _only_reader(self, node: Node) -> Node | None:
        readers = self._readers.get(node.outputs[0], [])
        return readers[0] if len(readers) == 1 and node.outputs[0] not in self._outputs else None

    def _branches(self, add: Node, name: str, layer: LinearLayer, wanted: Tensor) -> tuple[Tensor, Tensor] | None:
        """The other operand of an Add, ours and the original's, where both are computed already."""
        other = next((operand for operand in add.inputs if operand != name), None)
        if other is None or other not in self.student.env or other not in self.teacher.env:
            return None
        ours, theirs = self.student.env[other], self.teacher.env[other]
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != wanted.shape:
            return None
        theirs = _kept(theirs, layer, self.student.network)
        return (ours, theirs) if theirs.shape == ours.shape else None

    def _measure(self, node: Node, x: Tensor) -> None:
        """Running mean and variance as they are on these samples."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.double(), axes, correction=0)
        for name, value in ((node.inputs[3], mean), (node.inputs[4], variance)):
            dtype = self.student.network.tensors[name].dtype
            self.student.set_weight(name, value.numpy().astype(dtype))
        self.repair.measured.append(node.name)

    def _solve(self, layer: LinearLayer, x: Tensor, aim: _Aim) -> None:
        start = layer.matrix(self.student.value(layer.weight))
        with_bias = layer.bias is not None
        rows_per_sample = max(1, aim.wanted[0].numel() // aim.wanted.shape[layer.channel_axis])
        if layer.num_inputs > MAX_INPUTS:
            some = slice(0, max(1, MAX_WIDE_ROWS // rows_per_sample))
            solved, bias = solve_wide(layer.unfold(x[some]), layer.rows(aim.own(some)), start, with_bias=with_bias)
        else:
            pieces = list(_pieces(layer, len(x), rows_per_sample))
            gram = Gram(*start.shape)
            for piece in pieces:
                gram.add(layer.unfold(x[piece]), layer.rows(aim.own(piece)))
            solved, bias = gram.solve(start, with_bias=with_bias)
            for penalty in PENALTIES if aim.is_rectified else ():
                solved, bias = _again(layer, gram, x, aim, pieces, start, solved, bias, penalty)
        self.student.set_weight(layer.weight, layer.stored(solved).float().contiguous().numpy())
        if layer.bias is not None and bias is not None:
            self.student.set_weight(layer.bias, bias.reshape(-1).float().numpy())
        self.repair.refitted.append(layer.node.name)


def _again(
    layer: LinearLayer,
    gram: Gram,
    x: Tensor,
    aim: _Aim,
    pieces: list[slice],
    start: Tensor,
    solved: Tensor,
    bias: Tensor | None,
    penalty: float,
) -> tuple[Tensor, Tensor | None]:
    """One more refit, to outputs that a ReLU makes the same of."""
    other = gram.with_outputs()
    for piece in pieces:
        inputs = layer.unfold(x[piece])
        given = torch.bmm(inputs, solved.float()) + (0.0 if bias is None else bias.float().unsqueeze(1))
        beside = 0.0 if aim.branch is None else layer.rows(aim.branch[piece])
        other.add_outputs(inputs, auxiliary(layer.rows(aim.wanted[piece]), given + beside, penalty) - beside)
    return other.solve(start, with_bias=bias is not None)


def _pieces(layer: LinearLayer, num_samples: int, rows_per_sample: int) -> Iterator[slice]:
    """Slices over the samples, short enough to unfold; beyond some number of rows another changes only the time."""
    enough = GRAM_OPERATIONS / (layer.num_inputs**2 * layer.num_groups * rows_per_sample)
    num_samples = min(num_samples, max(32, int(enough)))
    step = max(1, PIECE_ELEMENTS // (rows_per_sample * layer.num_groups * layer.num_inputs))
    for at in range(0, num_samples, step):
        yield slice(at, min(at + step, num_samples))


def _kept(output: Tensor, layer: LinearLayer, network: Network) -> Tensor:
    """The original's output at the channels that the cut layer still has."""
    origin = network.origins[layer.weight]
    kept = origin.kept.get(layer.output_axis)
    if kept is None:
        return output
    if kept.ndim == 2:  # equal parts of axis 0, each with its own indices
        part = origin.shape[0] // len(kept)
        kept = (kept + np.arange(len(kept))[:, None] * part).reshape(-1)
    return output.index_select(layer.channel_axis, torch.from_numpy(np.ascontiguousarray(kept, np.int64)))
