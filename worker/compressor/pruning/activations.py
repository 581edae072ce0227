"""What layers read and make on samples, reduced to one number per unit while the samples pass through once.

Shapes: G groups of a layer, R rows (samples times positions), D inputs of one output, O outputs of a group, U units.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from worker.compressor.data.mixing import ENOUGH_ROWS, filled_up
from worker.compressor.graph.channels.grouping import Group, Slice
from worker.compressor.graph.evaluation import Stepper, shared_tensor
from worker.compressor.graph.network import Network
from worker.compressor.pruning.elimination import FixedReader, Reader, RefittedReader, eliminated
from worker.compressor.pruning.evidence import Samples
from worker.compressor.pruning.reconstruction.layers import LinearLayer, linear_layer
from worker.compressor.pruning.reconstruction.least_squares import RIDGE, Gram

# Beyond this width the inverse costs more than it tells: inputs then count as uncorrelated.
MAX_INPUTS = 2304
MAX_ROWS = 8192


@dataclass(frozen=True)
class Activations:
    """By group, `[U]` each; NaN for units that no such layer reads or makes.

    Summed over the layers that read a unit: `norms`, `Σ |w| · |x|₂ / √R` over its weights; `sizes`, `Σ |x|₂ / √R` over its
    inputs. `spreads`: the standard deviations of what makes it, summed over the makers.
    """

    norms: dict[int, np.ndarray]
    sizes: dict[int, np.ndarray]
    spreads: dict[int, np.ndarray]


def observe_layers(view: Network, groups: Sequence[Group], samples: Samples) -> Activations:
    """One forward pass over as many of the samples as have room."""
    wanted = _wanted(groups)
    found = Activations(*({group.id: np.full(group.num_units, np.nan) for group in groups} for _ in range(3)))
    for layer, x, output in _linear_layers(view, samples):
        if readers := _parts(wanted, layer, "consumes"):
            _note_readers(_Read(layer, x, view), readers, found)
        for group, part in _parts(wanted, layer, "produces"):
            _add(found.spreads[group.id], part.units, _spread(layer, output))
    return found


def _linear_layers(view: Network, samples: Samples) -> Iterator[tuple[LinearLayer, Tensor, Tensor]]:
    """Each linear layer with what it reads and makes, as the samples, and mixtures where they are few, pass through."""
    rows = {name: np.ascontiguousarray(feed[: samples.pass_rows]) for name, feed in samples.feeds.items()}
    rows = filled_up(rows, min(samples.pass_rows, ENOUGH_ROWS), np.random.default_rng(samples.seed))
    stepper = Stepper(view, {name: shared_tensor(feed) for name, feed in rows.items()})
    with torch.inference_mode():
        while (node := stepper.peek()) is not None:
            samples.check()
            layer = linear_layer(node, view)
            x = stepper.inputs(node)[0] if layer is not None else None
            output = stepper.step()[0]
            if layer is not None and isinstance(x, Tensor) and isinstance(output, Tensor):
                yield layer, x, output


def observe_costs(
    view: Network, groups: Sequence[Group], samples: Samples, *, refit: bool = True
) -> dict[int, np.ndarray]:
    """By group what each unit costs the layers that read it when its turn to go comes, `[U]`, as shares of the energy of their
    outputs, summed; see `elimination`. NaN for units that no such layer reads. One forward pass.

    `refit`: these layers are refitted to what is left of their inputs; else they stay as they are.
    """
    wanted, found = _wanted(groups), dict[int, np.ndarray]()
    layers = (layer for node in view.nodes if (layer := linear_layer(node, view)) is not None)
    to_come = Counter(group.id for layer in layers for group, _ in _parts(wanted, layer, "consumes"))
    readers: dict[int, list[Reader]] = {group.id: [] for group in groups}
    others = {group.id: np.full(group.num_units, np.nan) for group in groups}
    for layer, x, _ in _linear_layers(view, samples):
        parts = _parts(wanted, layer, "consumes")
        read = _Read(layer, x, view, refit=refit) if parts else None
        for group, part in parts:
            assert read is not None
            for row, positions in enumerate(_positions(layer, part)):
                own = torch.from_numpy(np.flatnonzero(positions >= 0))
                weight, units = read.weight[row, own] / math.sqrt(read.energy), positions[positions >= 0]
                inner = read.inverse if refit else read.inner
                if inner is None:
                    _add(others[group.id], units, (weight.square().sum(1) * read.diagonal[row, own]).numpy())
                elif refit:
                    readers[group.id].append(RefittedReader(inner[row][own][:, own], weight, units))
                else:
                    readers[group.id].append(FixedReader(inner[row][own][:, own], weight, units, group.num_units))
            to_come[group.id] -= 1
            if not to_come[group.id]:
                # What was kept of the layers is as large as their inputs squared: it goes as soon as it can.
                found[group.id] = eliminated(readers.pop(group.id), others[group.id], samples.check)
    return {group.id: found.get(group.id, others[group.id]) for group in groups}


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
    """What a layer reads, summed up over the rows: `weight` is `[G, D, O]`, `sizes` `[G, D]`; `energy` is that of its outputs.
    `inner` is `H` `[G, D, D]`, None where D is too wide or the inputs are not finite.

    Where the layer is to be refitted its bias, if it has one, takes the mean over.
    """

    def __init__(self, layer: LinearLayer, x: Tensor, view: Network, *, refit: bool = True) -> None:
        self.layer = layer
        self.weight = layer.matrix(torch.from_numpy(np.ascontiguousarray(view.tensors[layer.weight]))).double()
        is_centred = refit and layer.bias is not None
        self.inner: Tensor | None = None
        if layer.num_inputs > MAX_INPUTS:
            self.diagonal, energy = _diagonal_and_energy(_sampled_rows(layer, x), self.weight, centred=is_centred)
        else:
            inner = _inner(layer, _sampled_rows(layer, x), centred=is_centred)
            self.diagonal = inner.diagonal(dim1=1, dim2=2).clamp_min(0)
            energy = ((inner @ self.weight) * self.weight).sum()
            self.inner = inner if inner.isfinite().all() else None
        self.energy = float(energy.clamp_min(1e-30))
        self.sizes = self.diagonal.sqrt()

    @cached_property
    def inverse(self) -> Tensor | None:
        """The inverse of the damped `H`; None where there is none."""
        if (inner := self.inner) is None:
            return None
        mean, identity = self.diagonal.mean(1)[:, None, None], torch.eye(inner.shape[1], dtype=inner.dtype)
        # Of few rows with large means what is left around these has negative directions by rounding.
        for ridge in (RIDGE, 10 * RIDGE, 100 * RIDGE):
            factor, failed = torch.linalg.cholesky_ex(inner + (ridge * mean).clamp_min(1e-30) * identity)
            if not failed.any():
                return torch.cholesky_inverse(factor)
        return None


def _wanted(groups: Sequence[Group]) -> dict[tuple[str, str], list[tuple[Group, Slice]]]:
    wanted: dict[tuple[str, str], list[tuple[Group, Slice]]] = {}
    for group in groups:
        for part in group.slices:
            wanted.setdefault((part.node, part.role), []).append((group, part))
    return wanted


def _parts(
    wanted: dict[tuple[str, str], list[tuple[Group, Slice]]], layer: LinearLayer, role: str
) -> list[tuple[Group, Slice]]:
    """The groups that are cut on that side of the layer's weight."""
    return [(group, part) for group, part in wanted.get((layer.node.name, role), []) if part.tensor == layer.weight]


def _spread(layer: LinearLayer, output: Tensor) -> np.ndarray:
    """Standard deviation of each channel over samples and positions."""
    axis = layer.channel_axis % output.ndim
    deviations = output.float().std([a for a in range(output.ndim) if a != axis], correction=0)
    return np.asarray(deviations.double().numpy())


def _note_readers(read: _Read, readers: list[tuple[Group, Slice]], found: Activations) -> None:
    by_input = (read.weight.abs() * read.sizes.unsqueeze(2)).sum(2)
    for group, part in readers:
        for row, positions in enumerate(_positions(read.layer, part)):
            _add(found.norms[group.id], positions, by_input[row].numpy())
            _add(found.sizes[group.id], positions, read.sizes[row].numpy())


def _positions(layer: LinearLayer, part: Slice) -> Iterator[np.ndarray]:
    """For each group of the layer the unit of each of its D inputs, -1 where that is not of this group."""
    units = np.atleast_2d(part.units)
    units = np.repeat(units, layer.num_groups // len(units), axis=0)
    for row in units:
        yield np.repeat(row, layer.num_inputs // len(row))


def _sampled_rows(layer: LinearLayer, x: Tensor) -> Iterator[Tensor]:
    """About `MAX_ROWS` of the rows that the layer reads, in pieces `[G, R, D]`."""
    rows_per_sample = max(1, layer.unfold(x[:1]).shape[1])
    every = max(1, len(x) * rows_per_sample // MAX_ROWS)
    step = max(1, (16 << 20) // (rows_per_sample * layer.num_groups * layer.num_inputs))
    for at in range(0, len(x), step):
        yield layer.unfold(x[at : at + step])[:, ::every]


def _inner(layer: LinearLayer, pieces: Iterator[Tensor], *, centred: bool) -> Tensor:
    """Mean of `u u'` over the rows, `[G, D, D]` in float64; of centred rows where a bias can make up for the mean."""
    gram = Gram(layer.num_groups, layer.num_inputs, 0)
    for rows in pieces:
        gram.add(rows, rows[..., :0])
    mean = gram.input_sum / gram.num_rows
    inner = gram.inner / gram.num_rows
    return inner - mean.unsqueeze(2) * mean.unsqueeze(1) if centred else inner


def _diagonal_and_energy(pieces: Iterator[Tensor], weight: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """The diagonal of `_inner` `[G, D]`, and `tr(W' H W)`, without `H`."""
    means, squares = ([torch.zeros(())] * 2 for _ in range(2))
    num_rows, single = 0, weight.float()
    for rows in pieces:
        num_rows += rows.shape[1]
        for i, values in enumerate((rows, torch.bmm(rows, single))):
            means[i] = means[i] + values.sum(1, dtype=torch.float64)
            squares[i] = squares[i] + values.square().sum(1, dtype=torch.float64)
    inputs, outputs = (
        square / num_rows - ((mean / num_rows).square() if centred else 0.0)
        for mean, square in zip(means, squares, strict=True)
    )
    return inputs.clamp_min(0), outputs.sum()


def _add(numbers: np.ndarray, units: np.ndarray, values: np.ndarray) -> None:
    for unit, value in zip(np.ravel(units).tolist(), values.tolist(), strict=True):
        if unit >= 0:
            _add_one(numbers, unit, value)


def _add_one(numbers: np.ndarray, unit: int, value: float) -> None:
    numbers[unit] = value + (0.0 if np.isnan(numbers[unit]) else numbers[unit])
