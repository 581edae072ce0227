"""What a loss says of each unit, from backward passes over small batches.

A layer is linear in the weights that read a unit, so `Σ w · ∂L/∂w` over these weights is the derivative of the loss by a
gate on the unit there: what a gate of its own would give, without one (Kwon et al. 2022, arXiv 2204.09656, section 4).
Without labels the loss is the likelihood of labels drawn from what the network says itself, whose squared gradients are
its Fisher information (Kunstner et al. 2019, arXiv 1905.12558): the network's own answers have no gradient to speak of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from worker.compressor.distillation.objective import OutputKind, Scores
from worker.compressor.graph.channels.analysis import Group
from worker.compressor.graph.network import Network
from worker.compressor.graph.training.executor import ROWS, TENSORS, to_module
from worker.compressor.pruning.combining import Combine, unit_sums
from worker.compressor.pruning.evidence import Samples

BATCH_ROWS = 8
MAX_ROWS = 256


@dataclass(frozen=True)
class UnitGradients:
    """Of one group, `[B, U]` each, for B batches and U units.

    `gates`: `Σ w · g` over the unit's weights, the derivative by a gate on the unit. `curvatures`: `Σ w² · g²` over them.
    """

    gates: np.ndarray
    curvatures: np.ndarray


@dataclass(frozen=True)
class Moments:
    """Of one tensor, over batches: the mean of `|g|`, and that of `g²`, element by element."""

    size: np.ndarray
    square: np.ndarray


def weight_moments(view: Network, samples: Samples) -> dict[str, Moments]:
    """The gradients of every weight over up to `MAX_ROWS` rows, by tensor; zeros of one number for all others."""
    sizes, squares, number = dict[str, np.ndarray](), dict[str, np.ndarray](), 0
    for gradients in _batches(to_module(view).eval(), view, samples):
        number += 1
        for name, gradient in gradients.items():
            sizes[name] = sizes.get(name, 0.0) + np.abs(gradient)
            squares[name] = squares.get(name, 0.0) + np.square(gradient)
    nothing = Moments(np.zeros(1), np.zeros(1))
    found = {name: Moments(sizes[name] / number, squares[name] / number) for name in sizes}
    return defaultdict(lambda: nothing, found)


def unit_gradients(
    view: Network, groups: Sequence[Group], samples: Samples, combine: Combine
) -> dict[int, UnitGradients]:
    """The gradients of each group's units over up to `MAX_ROWS` rows, `BATCH_ROWS` at a time."""
    module = to_module(view).eval()
    gates: dict[int, list[np.ndarray]] = {group.id: [] for group in groups}
    curvatures: dict[int, list[np.ndarray]] = {group.id: [] for group in groups}
    for gradients in _batches(module, view, samples):
        products = {name: gradient * view.tensors[name] for name, gradient in gradients.items()}
        squares = {name: product**2 for name, product in products.items()}
        for group in groups:
            gates[group.id].append(unit_sums(group, products, combine))
            curvatures[group.id].append(unit_sums(group, squares, combine))
    return {group.id: UnitGradients(np.stack(gates[group.id]), np.stack(curvatures[group.id])) for group in groups}


def _batches(module: fx.GraphModule, view: Network, samples: Samples) -> Iterator[dict[str, np.ndarray]]:
    """For each batch the gradient of its mean loss, by tensor."""
    generator = torch.Generator().manual_seed(samples.seed)
    parameters = dict(module.named_parameters())
    arrays = [samples.feeds[port.name] for port in view.inputs]
    rows = min(MAX_ROWS, len(arrays[0]))
    size = min(BATCH_ROWS, samples.pass_rows)
    # The last rows are left out where they are no whole batch: some networks take batches of one size alone.
    for at in range(0, max(rows - size, 0) + 1, size):
        samples.check()
        piece = slice(at, at + size)
        outputs = module(*(torch.from_numpy(np.ascontiguousarray(array[piece])) for array in arrays))
        labels = None if samples.labels is None else torch.from_numpy(samples.labels[piece])
        module.zero_grad(set_to_none=True)
        likelihood(outputs, samples, labels, generator).backward()
        yield {
            name: _in_order(module, attribute, parameter.grad).numpy().reshape(view.tensors[name].shape)
            for attribute, parameter in parameters.items()
            if parameter.grad is not None
            for name in module.meta[TENSORS][attribute][:1]
        }


def _in_order(module: fx.GraphModule, attribute: str, gradient: Tensor) -> Tensor:
    """The gradient with its rows as the network stores them."""
    rows = module.meta[ROWS].get(attribute)
    return gradient if rows is None else gradient[:, np.argsort(rows)]


def likelihood(
    outputs: tuple[Tensor, ...], samples: Samples, labels: Tensor | None, generator: torch.Generator
) -> Tensor:
    """The mean negative log-likelihood of the labels; of drawn ones, at every output, where there are none."""
    first = samples.kinds[0]
    if labels is not None and first is not None and samples.task == "classification":
        return F.cross_entropy(first.logits(outputs[0]), labels.long())
    total = torch.zeros(())
    for kind, output in zip(samples.kinds, outputs, strict=False):
        if kind is not None:
            total = total + _drawn(kind, output, generator)
    return total


def _drawn(kind: OutputKind, output: Tensor, generator: torch.Generator) -> Tensor:
    if kind.scores is Scores.VALUES:
        noise = torch.randn(output.shape, generator=generator) * kind.spread
        return F.mse_loss(output.float(), (output.float() + noise).detach()) / (2 * kind.spread**2)
    logits = kind.logits(output)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, drawn)
