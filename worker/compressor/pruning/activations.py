"""What layers read and make on samples, reduced to one number per unit while the samples pass through once.

Shapes: G groups of a layer, R rows (samples times positions), D inputs of one output, O outputs of a group, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.compressor.graph.channels.grouping import Group, Slice
from worker.compressor.graph.evaluation import Stepper, shared_tensor
from worker.compressor.graph.network import Network
from worker.compressor.pruning.evidence import Samples
from worker.compressor.pruning.reconstruction.layers import LinearLayer, linear_layer
from worker.compressor.pruning.reconstruction.least_squares import RIDGE, Gram

# Beyond this width the inverse costs more than it tells: inputs then count as uncorrelated.
MAX_INPUTS = 2304
MAX_ROWS = 20_000


@dataclass(frozen=True)
class Activations:
    """By group, `[U]` each; NaN for units that no such layer reads or makes.

    Summed over the layers that read a unit: `costs`, what each loses without it, refitted, as a share of its output's
    energy; `norms`, `Σ |w| · |x|₂ / √R` over its weights; `sizes`, `Σ |x|₂ / √R` over its inputs. `spreads`: the standard
    deviations of what makes it, summed over the makers.
    """

    costs: dict[int, np.ndarray]
    norms: dict[int, np.ndarray]
    sizes: dict[int, np.ndarray]
    spreads: dict[int, np.ndarray]


def observe_layers(view: Network, groups: Sequence[Group], samples: Samples) -> Activations:
    """One forward pass over as many of the samples as have room."""
    wanted = _wanted(groups)
    found = Activations(*({group.id: np.full(group.num_units, np.nan) for group in groups} for _ in range(4)))
    for layer, x, output in _linear_layers(view, samples):
        readers, makers = (
            [(group, part) for group, part in wanted.get((layer.node.name, role), []) if part.tensor == layer.weight]
            for role in ("consumes", "produces")
        )
        if readers:
            _note_readers(_Read(layer, x, view), readers, found)
        for group, part in makers:
            _add(found.spreads[group.id], part.units, _spread(layer, output))
    return found


def _linear_layers(view: Network, samples: Samples) -> Iterator[tuple[LinearLayer, Tensor, Tensor]]:
    """Each linear layer with what it reads and makes, as the samples pass through."""
    rows = {name: np.ascontiguousarray(feed[: samples.pass_rows]) for name, feed in samples.feeds.items()}
    stepper = Stepper(view, {name: shared_tensor(feed) for name, feed in rows.items()})
    with torch.inference_mode():
        while (node := stepper.peek()) is not None:
            layer = linear_layer(node, view)
            x = stepper.inputs(node)[0] if layer is not None else None
            output = stepper.step()[0]
            if layer is not None and isinstance(x, Tensor) and isinstance(output, Tensor):
                yield layer, x, output


@dataclass(frozen=True)
class Inputs:
    """Of one weight tensor, in its shape: `norms`, `|w| · |x|₂ / √R`; `costs`, what is lost without w, the others refitted
    (`w² / [H⁻¹]_dd`), as a share of the output's energy.
    """

    norms: np.ndarray
    costs: np.ndarray


def observe_inputs(view: Network, samples: Samples) -> dict[str, Inputs]:
    """One forward pass over as many of the samples as have room; the linear layers' weights, by tensor."""
    found: dict[str, Inputs] = {}
    for layer, x, _ in _linear_layers(view, samples):
        if layer.weight in found:
            continue
        read = _Read(layer, x, view)
        norms = read.weight.abs() * read.sizes.unsqueeze(2)
        own = read.diagonal if read.inverse is None else 1 / read.inverse.diagonal(dim1=1, dim2=2)
        costs = read.weight.square() * own.unsqueeze(2) / read.energy
        found[layer.weight] = Inputs(layer.stored(norms).numpy(), layer.stored(costs).numpy())
    return found


class _Read:
    """What a layer reads: `inverse` of the damped `H`, None where D is too wide; `weight` is `[G, D, O]`."""

    def __init__(self, layer: LinearLayer, x: Tensor, view: Network) -> None:
        self.layer = layer
        self.weight = layer.matrix(torch.from_numpy(np.ascontiguousarray(view.tensors[layer.weight]))).double()
        inner = _inner(layer, x, centred=layer.bias is not None)
        self.energy = float(((inner @ self.weight) * self.weight).sum().clamp_min(1e-30))
        self.diagonal = inner.diagonal(dim1=1, dim2=2).clamp_min(0)
        self.sizes = self.diagonal.sqrt()
        damping = (RIDGE * self.diagonal.mean(1)).clamp_min(1e-30)
        inner = inner + damping[:, None, None] * torch.eye(inner.shape[1], dtype=inner.dtype)
        is_narrow = layer.num_inputs <= MAX_INPUTS
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(inner)) if is_narrow else None

    def cost(self, row: int, where: Tensor) -> float:
        """What the outputs of group `row` lose without the inputs `where`, refitted."""
        w = self.weight[row, where]
        if self.inverse is None:
            return float((w.square().sum(1) * self.diagonal[row, where]).sum()) / self.energy
        return float((w * torch.linalg.solve(self.inverse[row][where][:, where], w)).sum()) / self.energy


def _wanted(groups: Sequence[Group]) -> dict[tuple[str, str], list[tuple[Group, Slice]]]:
    wanted: dict[tuple[str, str], list[tuple[Group, Slice]]] = {}
    for group in groups:
        for part in group.slices:
            wanted.setdefault((part.node, part.role), []).append((group, part))
    return wanted


def _spread(layer: LinearLayer, output: Tensor) -> np.ndarray:
    """Standard deviation of each channel over samples and positions."""
    axis = layer.channel_axis % output.ndim
    deviations = output.float().std([a for a in range(output.ndim) if a != axis], correction=0)
    return np.asarray(deviations.double().numpy())


def _note_readers(read: _Read, readers: list[tuple[Group, Slice]], found: Activations) -> None:
    by_input = (read.weight.abs() * read.sizes.unsqueeze(2)).sum(2)
    for group, part in readers:
        for row, positions in enumerate(_positions(read.layer, part)):
            for unit in np.unique(positions[positions >= 0]).tolist():
                where = torch.from_numpy(np.flatnonzero(positions == unit))
                _add_one(found.costs[group.id], unit, read.cost(row, where))
                _add_one(found.norms[group.id], unit, float(by_input[row, where].sum()))
                _add_one(found.sizes[group.id], unit, float(read.sizes[row, where].sum()))


def _positions(layer: LinearLayer, part: Slice) -> Iterator[np.ndarray]:
    """For each group of the layer the unit of each of its D inputs, -1 where that is not of this group."""
    units = np.atleast_2d(part.units)
    units = np.repeat(units, layer.num_groups // len(units), axis=0)
    for row in units:
        yield np.repeat(row, layer.num_inputs // len(row))


def _inner(layer: LinearLayer, x: Tensor, *, centred: bool) -> Tensor:
    """Mean of `u u'` over a sample of the rows, `[G, D, D]` in float64; of centred rows where a bias can make up for the mean."""
    rows_per_sample = max(1, layer.unfold(x[:1]).shape[1])
    every = max(1, len(x) * rows_per_sample // MAX_ROWS)
    gram = Gram(layer.num_groups, layer.num_inputs, 0)
    step = max(1, (16 << 20) // (rows_per_sample * layer.num_groups * layer.num_inputs))
    for at in range(0, len(x), step):
        rows = layer.unfold(x[at : at + step])[:, ::every]
        gram.add(rows, rows[..., :0])
    mean = gram.input_sum / gram.num_rows
    inner = gram.inner / gram.num_rows
    return inner - mean.unsqueeze(2) * mean.unsqueeze(1) if centred else inner


def _add(numbers: np.ndarray, units: np.ndarray, values: np.ndarray) -> None:
    for unit, value in zip(np.ravel(units).tolist(), values.tolist(), strict=True):
        if unit >= 0:
            _add_one(numbers, unit, value)


def _add_one(numbers: np.ndarray, unit: int, value: float) -> None:
    numbers[unit] = value + (0.0 if np.isnan(numbers[unit]) else numbers[unit])
