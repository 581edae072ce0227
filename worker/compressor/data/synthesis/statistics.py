"""What a network remembers of its data: mean and variance of what entered each BatchNormalization in training.

Shapes: N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.compressor.graph.evaluation import as_tensor
from worker.compressor.graph.network import Network


@dataclass(frozen=True)
class Statistics:
    """The tensor `value` `[N, C, …]` of the network had this `mean` and `variance` `[C]`."""

    value: str
    mean: Tensor
    variance: Tensor
    epsilon: float

    def to(self, device: torch.device) -> Statistics:
        """The same on a device."""
        return Statistics(self.value, self.mean.to(device), self.variance.to(device), self.epsilon)


def statistics_of(network: Network) -> list[Statistics]:
    """In graph order, of every BatchNormalization whose running mean and variance are in the file."""
    tensors, found = network.tensors, []
    for node in network.nodes:
        if node.op != "BatchNormalization" or node.inputs[0] in tensors:
            continue
        if not all(name in tensors and np.isfinite(tensors[name]).all() for name in node.inputs[3:5]):
            continue
        mean, variance = (as_tensor(tensors[name]).float() for name in node.inputs[3:5])
        epsilon = float(node.attributes.get("epsilon", 1e-5))
        found.append(Statistics(node.inputs[0], mean, variance.clamp_min(0.0), epsilon))
    return found


def distance(values: Sequence[Tensor], wanted: Sequence[Statistics]) -> Tensor:
    """How far the values are from the statistics: 0 where mean and variance of each channel are the same.

    Mean over channels, then layers, of the Kullback-Leibler divergence of two normal distributions, in nats:
    `(r + (m - μ)² / σ² - 1 - log r) / 2`, `r = v / σ²`. Unlike the plain differences of DeepInversion and ZeroQ it counts
    each channel in units of its own spread.
    """
    terms = []
    for value, statistics in zip(values, wanted, strict=True):
        axes = [axis for axis in range(value.ndim) if axis != 1]
        variance, mean = torch.var_mean(value, axes, correction=0)
        spread = statistics.variance + statistics.epsilon
        ratio = (variance + statistics.epsilon) / spread
        terms.append((ratio + (mean - statistics.mean).square() / spread - 1 - ratio.log()).mean() / 2)
    return torch.stack(terms).mean()
