"""BatchNormalization (Ioffe and Szegedy 2015, arXiv 1502.03167), in inference and in training."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _batch_norm(call: Call) -> Any:
    if call.attribute("training_mode", 0):
        raise call.refuse("is in training mode")
    if call.attribute("spatial", 1) == 0:
        raise call.refuse("normalises each position by itself")
    x, scale, bias, mean, variance = (call.tensor(slot) for slot in range(5))
    epsilon = call.attribute("epsilon", 1e-5)
    if any(call.known(slot) is None for slot in (3, 4)):  # of data (a layer normalisation): they have gradients
        axes = [-1, *[1] * (call.rank(0) - 2)]
        scale, bias, mean, variance = (torch.reshape(vector, axes) for vector in (scale, bias, mean, variance))
        return (x - mean) * (scale / torch.sqrt(variance + epsilon)) + bias
    # In training mode torch updates mean and variance in place, by the momentum that the trainer set.
    return functional.batch_norm(x, mean, variance, scale, bias, call.training, call.momentum, epsilon)


def _batch_norm_channels(walk: Walk, node: Node) -> None:
    walk.follow(node, (0, 1), [(slot, 0) for slot in range(1, 5)])


register(
    Operator(
        op="BatchNormalization",
        versions=(7, 9, 14, 15),
        run=_batch_norm,
        channels=_batch_norm_channels,
        weights=(1, 2),
    )
)
