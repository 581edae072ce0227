"""Normalisations without weights: over neighbouring channels, to unit length, to mean 0 and variance 1."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, Operator, register
from worker.compressor.graph.walk import Walk


def _local_response(call: Call) -> Any:
    """Krizhevsky et al. 2012, section 3.3. Of an even number of neighbours ONNX has one more behind, torch before."""
    x, size = call.tensor(0), call.attribute("size")
    alpha, beta, k = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75), call.attribute("bias", 1.0)
    if size % 2 or call.rank(0) < 3:
        return functional.local_response_norm(x, size, alpha, beta, k)
    return torch.flip(functional.local_response_norm(torch.flip(x, [1]), size, alpha, beta, k), [1])


def _to_unit_length(call: Call) -> Any:
    return functional.normalize(call.tensor(0), float(call.attribute("p", 2)), call.attribute("axis", -1))


def _mean_variance(call: Call) -> Any:
    x, axes = call.tensor(0), _mean_variance_axes(call.node)
    centred = x - torch.mean(x, axes, True)
    return centred / (torch.sqrt(torch.mean(torch.square(centred), axes, True)) + 1e-9)


def _mean_variance_axes(node: Node) -> list[int]:
    return list(node.attributes.get("axes", [0, 2, 3]))


def _mean_variance_channels(walk: Walk, node: Node) -> None:
    walk.close(node, _mean_variance_axes(node), f"MeanVarianceNormalization '{node.name}' normalises over them")


def _pinned(walk: Walk, node: Node) -> None:
    walk.pin(node, f"{node.op} '{node.name}' normalises over them")


register(Operator(op="LRN", versions=(1, 13), run=_local_response, channels=_pinned))
register(Operator(op="LpNormalization", versions=(1, 22), run=_to_unit_length, channels=_pinned))
register(
    Operator(op="MeanVarianceNormalization", versions=(9, 13), run=_mean_variance, channels=_mean_variance_channels)
)
