"""What of a layer is fitted: the layer alone, or the layer and the bias or BatchNorm right behind it as one linear map.

With BatchNorm `y = a · (W'u + b - μ) + β`, `a = γ / sqrt(σ² + ε)`: the fit is done on y, because that is what the next
layer reads; afterwards mean and variance are those of the new output, and γ and β are such that y is what was fitted.
Shapes: G groups, D inputs, O outputs of a group; vectors over all outputs are `[G · O]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, where

from worker.compressor.graph.evaluation import as_tensor
from worker.compressor.graph.network import Network, Node
from worker.compressor.pruning.reconstruction.layers import LinearLayer
from worker.compressor.pruning.reconstruction.least_squares import Gram

Weights = dict[str, np.ndarray]


class Tail:
    """The layer alone: its own weight and bias."""

    def __init__(self, layer: LinearLayer, network: Network) -> None:
        self.layer = layer
        self.tensors: Mapping[str, np.ndarray] = network.tensors
        self.output = layer.node.outputs[0]

    @property
    def has_bias(self) -> bool:
        """Whether the map has an offset of its own."""
        return self.layer.bias is not None

    def start(self) -> Tensor:
        """The map as it is, `[G, D, O]`."""
        return self.layer.matrix(as_tensor(self.tensors[self.layer.weight]))

    def target(self, output: Tensor, original: Network, kept: np.ndarray | None) -> Tensor:
        """From the original layer's output (at the kept channels) to what the map should give."""
        return output

    def weights(self, solved: Tensor, bias: Tensor | None, gram: Gram | None) -> Weights:
        """The tensors that realise a fitted map."""
        found = {self.layer.weight: _array(self.layer.stored(solved))}
        if self.layer.bias is not None and bias is not None:
            found[self.layer.bias] = _array(bias.reshape(-1))
        return found


class BiasedTail(Tail):
    """A product and the vector that an Add right behind it adds, as exporters write a linear layer over several axes."""

    def __init__(self, layer: LinearLayer, network: Network, add: Node, vector: str) -> None:
        super().__init__(layer, network)
        self.output, self._vector = add.outputs[0], vector

    @property
    def has_bias(self) -> bool:
        """The vector is one."""
        return True

    def target(self, output: Tensor, original: Network, kept: np.ndarray | None) -> Tensor:
        """See `Tail.target`: with the original's vector added."""
        vector = original.tensors[self._vector]
        return output + as_tensor(vector if kept is None else vector[kept])

    def weights(self, solved: Tensor, bias: Tensor | None, gram: Gram | None) -> Weights:
        """See `Tail.weights`."""
        assert bias is not None
        return {self.layer.weight: _array(self.layer.stored(solved)), self._vector: _array(bias.reshape(-1))}


class NormalisedTail(Tail):
    """The layer and the BatchNorm behind it; `measure` gives the BatchNorm the statistics of the new output."""

    def __init__(self, layer: LinearLayer, network: Network, norm: Node, measure: bool) -> None:
        super().__init__(layer, network)
        self.output = norm.outputs[0]
        self._norm, self._measure = norm, measure
        slopes, _ = self._line(network, None)
        # A channel that BatchNorm switches off has no slope to divide by; it gets that of its neighbours.
        usual = slopes.abs().median().clamp_min(1e-6)
        self._slopes = where(slopes.abs() < 1e-3 * usual, usual, slopes)

    @property
    def has_bias(self) -> bool:
        """BatchNorm has one."""
        return True

    def start(self) -> Tensor:
        """See `Tail.start`."""
        return super().start() * self._grouped(self._slopes)

    def target(self, output: Tensor, original: Network, kept: np.ndarray | None) -> Tensor:
        """See `Tail.target`: the original's BatchNorm applied to its layer's output."""
        slopes, offsets = (vector.float() for vector in self._line(original, kept))
        shape = [1, -1] + [1] * (output.ndim - 2)
        return output * slopes.reshape(shape) + offsets.reshape(shape)

    def weights(self, solved: Tensor, bias: Tensor | None, gram: Gram | None) -> Weights:
        """See `Tail.weights`."""
        assert bias is not None and gram is not None
        plain = solved / self._grouped(self._slopes)
        own = self.layer.bias
        offset = 0.0 if own is None else as_tensor(self.tensors[own]).double()
        scale_name, bias_name, mean_name, variance_name = self._norm.inputs[1:5]
        mean, variance = (as_tensor(self.tensors[name]).double() for name in (mean_name, variance_name))
        if self._measure:
            mean, variance = gram.statistics(plain)
            mean = mean + offset
        epsilon = float(self._norm.attributes.get("epsilon", 1e-5))
        return {
            self.layer.weight: _array(self.layer.stored(plain)),
            scale_name: _array(self._slopes * (variance + epsilon).sqrt()),
            bias_name: _array(bias.reshape(-1) + self._slopes * (mean - offset)),
            mean_name: _array(mean),
            variance_name: _array(variance),
        }

    def _line(self, network: Network, kept: np.ndarray | None) -> tuple[Tensor, Tensor]:
        """Slope and offset of the BatchNorm in inference, in float64."""
        arrays = [network.tensors[name] for name in self._norm.inputs[1:5]]
        scale, bias, mean, variance = (as_tensor(a if kept is None else a[kept]).double() for a in arrays)
        slope = scale / (variance + float(self._norm.attributes.get("epsilon", 1e-5))).sqrt()
        return slope, bias - slope * mean

    def _grouped(self, vector: Tensor) -> Tensor:
        return vector.reshape(self.layer.num_groups, 1, -1)


def _array(tensor: Any) -> np.ndarray:
    array: np.ndarray = tensor.float().contiguous().numpy()
    return array
