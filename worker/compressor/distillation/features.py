"""Matching the original inside as well as at its outputs: what each layer makes of a sample, at the channels that are left.

FitNets (Romero et al. 2014, arXiv 1412.6550), where the student is narrower by what was cut, so that no map between the
two has to be learnt. A few hundred rows say far more inside a network than at its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worker.compressor.distillation.objective import LossFunction
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network
from worker.compressor.pruning.reconstruction.layers import kept_outputs, linear_layer

#: What may stand between a layer and the place where it is compared: operators that keep its channels.
_FOLLOWERS = ("BatchNormalization", "Add", "Relu", "Clip", "LeakyRelu")
#: The weight of all features together beside the outputs' own distance.
WEIGHT = 30.0


@dataclass(frozen=True)
class Feature:
    """A tensor of both networks; of the original only `kept` counts along `axis`, where it is not None."""

    name: str
    axis: int
    kept: np.ndarray | None

    def of_teacher(self, tensor: Tensor) -> Tensor:
        """The channels that the student has too."""
        return (
            tensor
            if self.kept is None
            else tensor.index_select(self.axis, torch.from_numpy(self.kept).to(tensor.device))
        )


def features(original: Network, network: Network) -> list[Feature]:
    """Where the layers of `network` can be compared with those of the `original` that it was cut from: behind the sum and
    the activation that nothing else reads the layer's output before. Outputs of the network are not among them.
    """
    consumers, outputs = network.consumers(), {port.name for port in network.outputs}
    before, after = (observe(one, one.sample_shapes).shapes for one in (original, network))
    found: dict[str, Feature] = {}
    for node in network.nodes:
        layer = linear_layer(node, network)
        if layer is None:
            continue
        name = node.outputs[0]
        while len(readers := consumers.get(name, [])) == 1 and readers[0][0].op in _FOLLOWERS and name not in outputs:
            name = readers[0][0].outputs[0]
        kept, axis = kept_outputs(layer, network), layer.channel_axis
        same = name in before and name in after and _narrowed(before[name], axis, kept) == tuple(after[name])
        if same and name not in outputs:
            found[name] = Feature(name, axis, kept)
    return list(found.values())


class Imitation:
    """`objective` on the outputs, and the mean over the features of `|student - teacher|² / |teacher|²`, times `WEIGHT`.

    Both networks give their outputs first, then the features in order.
    """

    def __init__(self, objective: LossFunction, compared: Sequence[Feature]) -> None:
        self._objective, self._features = objective, compared

    def __call__(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """A scalar."""
        count = len(self._features)
        own = len(outputs) - count
        total = self._objective(outputs[:own], teacher[: len(teacher) - count], labels)
        for feature, made, wanted in zip(self._features, outputs[own:], teacher[len(teacher) - count :], strict=True):
            aim = feature.of_teacher(wanted).float()
            power = aim.square().mean().clamp_min(1e-12)
            total = total + WEIGHT / count * F.mse_loss(made.float(), aim) / power
        return total


def _narrowed(shape: Sequence[int], axis: int, kept: np.ndarray | None) -> tuple[int, ...]:
    sizes = list(shape)
    if kept is not None and -len(sizes) <= axis < len(sizes):
        sizes[axis] = len(kept)
    return tuple(sizes)
