"""Bias and variance correction: the outputs of a layer get the mean and variance that the original's have.

Nagel et al. 2019 (arXiv 1906.04721) shift each bias by the difference of the means; Jordan et al. 2023 (REPAIR, arXiv
2211.08403) scale each channel too: `y' = s · (y - E[y]) + E[y°]`, `s = σ[y°] / σ[y]`. It is what measuring BatchNorm anew
does where there is one, and needs no system to be solved.

Shapes: N samples, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.compressor.graph.evaluation import as_tensor
from worker.compressor.pruning.reconstruction.tails import Tail, Weights

#: An output that hardly moves says nothing of what it should be multiplied by; larger factors would blow up noise.
MOST_SCALE = 10.0


def matched(tail: Tail, given: Tensor, wanted: Tensor) -> Weights:
    """The tensors with which the layer, which has a bias, gives `wanted` `[N, O, …]` in mean and variance of each output,
    where it gave `given` (its own bias included) before.
    """
    layer = tail.layer
    axes = [axis for axis in range(given.ndim) if axis != layer.channel_axis % given.ndim]
    variance, mean = torch.var_mean(given.double(), axes, correction=0)
    wanted_variance, wanted_mean = torch.var_mean(wanted.double(), axes, correction=0)
    scale = (wanted_variance / variance.clamp_min(1e-30)).sqrt()
    scale = torch.where(scale < MOST_SCALE, scale, 1.0)
    if layer.bias is not None:
        mean = mean - as_tensor(tail.tensors[layer.bias]).double()
    by_group = (layer.num_groups, 1, -1)
    return tail.weights(tail.start() * scale.reshape(by_group), wanted_mean - scale * mean, None)
