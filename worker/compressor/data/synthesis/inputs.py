"""Inputs whose values at every BatchNormalization have the mean and variance that the network remembers of its data.

Yin et al. 2020, Dreaming to Distill (DeepInversion, arXiv 1912.08795), and Cai et al. 2020, ZeroQ (arXiv 2001.00281): the
inputs are what gradient descent changes, a batch at a time, because statistics are those of a batch. Without the classes
that DeepInversion draws as well: matching these gained nothing where it was measured (ADR 17).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.compressor.data.synthesis.start import fitting_size, smooth_noise
from worker.compressor.data.synthesis.statistics import Statistics, distance, statistics_of
from worker.compressor.graph.network import Network
from worker.compressor.graph.training.executor import to_module

LEARNING_RATE = 0.1
#: Rows that the size of the values is chosen on.
SIZED_ROWS = 16

Feeds = dict[str, np.ndarray]
Values = Callable[[Mapping[str, Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Effort:
    """So many rows, at most `batch` of them at a time, each changed in so many steps."""

    rows: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Synthesis:
    """The inputs by name, and how far their statistics are from the remembered ones (`distance`), before and after."""

    feeds: Feeds
    before: float
    after: float


def can_synthesise(network: Network, feeds: Feeds) -> bool:
    """Whether there are statistics, and inputs of numbers that have gradients."""
    return bool(statistics_of(network)) and any(_is_real(array) for array in feeds.values())


def synthesise(
    network: Network,
    feeds: Feeds,
    effort: Effort,
    seed: int,
    device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> Synthesis | None:
    """Make inputs up. `network` computes in float32 and has a free batch; `feeds` tells shapes and dtypes, and rows of
    whole numbers are used as they are, in turn. None where the numbers did not stay finite.
    """
    wanted = [statistics.to(device) for statistics in statistics_of(network)]
    values, generator = _values(network, wanted, device), torch.Generator().manual_seed(seed)
    made, before, after = [], [], []
    starts = range(0, effort.rows, effort.batch)
    for number, at in enumerate(starts):
        rows = np.arange(at, min(at + effort.batch, effort.rows))
        fixed, free = _start(feeds, rows, generator, device)

        def told(share: float, done: int = number) -> None:
            progress((done + share) / len(starts))

        begin, end = _descend(values, wanted, fixed, free, effort.steps, told)
        if not np.isfinite(end):
            return None
        before.append(begin)
        after.append(end)
        made.append({name: tensor.detach().cpu().numpy() for name, tensor in (fixed | free).items()})
    found = {name: np.concatenate([batch[name] for batch in made]).astype(feeds[name].dtype) for name in feeds}
    return Synthesis(found, float(np.mean(before)), float(np.mean(after)))


def _values(network: Network, wanted: Sequence[Statistics], device: torch.device) -> Values:
    """What enters each BatchNormalization, from inputs by name."""
    module = to_module(network, trainable=False, also=[statistics.value for statistics in wanted]).eval().to(device)
    names, num_outputs = [port.name for port in network.inputs], len(network.outputs)
    return lambda given: list(module(*(given[name] for name in names))[num_outputs:])


def _start(
    feeds: Feeds, rows: np.ndarray, generator: torch.Generator, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs that stay as they are, and those that are searched for."""
    fixed: dict[str, Tensor] = {}
    free: dict[str, Tensor] = {}
    for name, array in feeds.items():
        if _is_real(array):
            free[name] = smooth_noise((len(rows), *array.shape[1:]), generator).to(device)
        else:
            fixed[name] = torch.from_numpy(array[rows % len(array)]).to(device)
    return fixed, free


def _descend(
    values: Values,
    wanted: Sequence[Statistics],
    fixed: dict[str, Tensor],
    free: dict[str, Tensor],
    steps: int,
    told: Callable[[float], None],
) -> tuple[float, float]:
    """Change `free` until its statistics are the wanted ones; how far they were and are."""

    def far(scale: float, offset: float, rows: slice = slice(None)) -> Tensor:
        sized = {name: tensor[rows] * scale + offset for name, tensor in free.items()}
        return distance(values({**{name: tensor[rows] for name, tensor in fixed.items()}, **sized}), wanted)

    with torch.no_grad():
        size = fitting_size(lambda scale, offset: _finite(float(far(scale, offset, slice(SIZED_ROWS)))))
        begin = float(far(*size))
    for tensor in free.values():
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(free.values(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        loss = far(*size)
        if not loss.requires_grad:  # what is normalised does not depend on these inputs
            return begin, begin
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        told((step + 1) / steps)
    with torch.no_grad():
        end, (scale, offset) = float(far(*size)), size
        free.update({name: tensor * scale + offset for name, tensor in free.items()})
    return begin, end


def _is_real(array: np.ndarray) -> bool:
    return array.dtype.kind in "fV"  # bfloat16 is V to numpy


def _finite(number: float) -> float:
    return number if np.isfinite(number) else float("inf")
