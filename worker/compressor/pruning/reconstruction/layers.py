"""Conv, Gemm and MatMul as one linear map of unfolded inputs, for the least-squares refit.

Shapes: N samples, C channels, G groups, R rows (samples times positions), D inputs of one output, O outputs of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import Call
from worker.compressor.graph.padding import spatial_pads, torch_pads


class LinearLayer(ABC):
    """A node seen as `y = W'u + b`. `weight` and `bias` name its tensors; `output_axis` is where W has its outputs."""

    def __init__(self, node: Node, network: Network) -> None:
        self.node = node
        self.weight = node.inputs[1]
        self.bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
        self.shape = network.tensors[self.weight].shape

    num_groups = 1
    output_axis = 0
    channel_axis = -1

    @property
    @abstractmethod
    def num_inputs(self) -> int:
        """D."""

    @property
    def num_outputs(self) -> int:
        """Outputs of all groups."""
        return int(self.shape[self.output_axis])

    @abstractmethod
    def unfold(self, x: Tensor) -> Tensor:
        """Inputs as `[G, R, D]`."""

    @abstractmethod
    def rows(self, y: Tensor) -> Tensor:
        """Outputs as `[G, R, O]`, in the order of `unfold`."""

    @abstractmethod
    def matrix(self, weight: Tensor) -> Tensor:
        """The stored weight as `[G, D, O]`."""

    @abstractmethod
    def stored(self, matrix: Tensor) -> Tensor:
        """The inverse of `matrix`."""


class Convolution(LinearLayer):
    """A convolution over one or two spatial axes, grouped or not: every position of the output is a row."""

    channel_axis = 1

    def __init__(self, node: Node, network: Network) -> None:
        super().__init__(node, network)
        self.num_groups = int(node.attributes.get("group", 1))
        self._num_axes = len(self.shape) - 2
        self._strides = list(node.attributes.get("strides", [1] * self._num_axes))
        self._dilations = list(node.attributes.get("dilations", [1] * self._num_axes))

    @property
    def num_inputs(self) -> int:
        """C / G times the kernel's elements."""
        return int(np.prod(self.shape[1:]))

    def unfold(self, x: Tensor) -> Tensor:
        """See `LinearLayer.unfold`."""
        kernel = list(self.shape[2:])
        call = Call(self.node, [x], constant=_nothing, known=_nothing, shape=lambda name: tuple(x.shape))
        x = F.pad(x, torch_pads(spatial_pads(call, x, kernel, self._strides, self._dilations)))
        if self._num_axes == 1:
            x, kernel = x.unsqueeze(2), [1, *kernel]
        dilations, strides = ([1] * (2 - self._num_axes) + values for values in (self._dilations, self._strides))
        columns = F.unfold(x.contiguous(), tuple(kernel), tuple(dilations), 0, tuple(strides))  # [N, G·D, positions]
        count, _, positions = columns.shape
        columns = columns.view(count, self.num_groups, -1, positions)
        return columns.permute(1, 0, 3, 2).reshape(self.num_groups, count * positions, -1)

    def rows(self, y: Tensor) -> Tensor:
        """See `LinearLayer.rows`."""
        count, channels = y.shape[:2]
        grouped = y.reshape(count, self.num_groups, channels // self.num_groups, -1)
        return grouped.permute(1, 0, 3, 2).reshape(self.num_groups, -1, channels // self.num_groups)

    def matrix(self, weight: Tensor) -> Tensor:
        """See `LinearLayer.matrix`."""
        return weight.reshape(self.num_groups, -1, self.num_inputs).transpose(1, 2)

    def stored(self, matrix: Tensor) -> Tensor:
        """See `LinearLayer.stored`."""
        return matrix.transpose(1, 2).reshape(self.shape)


class Product(LinearLayer):
    """A Gemm or MatMul with a weight on the right: rows are all leading axes."""

    def __init__(self, node: Node, network: Network) -> None:
        super().__init__(node, network)
        self._turned = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
        self.output_axis = 0 if self._turned else 1

    @property
    def num_inputs(self) -> int:
        """Features."""
        return int(self.shape[1 - self.output_axis])

    def unfold(self, x: Tensor) -> Tensor:
        """See `LinearLayer.unfold`."""
        return x.reshape(1, -1, x.shape[-1])

    def rows(self, y: Tensor) -> Tensor:
        """See `LinearLayer.rows`."""
        return y.reshape(1, -1, y.shape[-1])

    def matrix(self, weight: Tensor) -> Tensor:
        """See `LinearLayer.matrix`."""
        return (weight.t() if self._turned else weight).unsqueeze(0)

    def stored(self, matrix: Tensor) -> Tensor:
        """See `LinearLayer.stored`."""
        return matrix[0].t() if self._turned else matrix[0]


def linear_layer(node: Node, network: Network) -> LinearLayer | None:
    """The node as a linear layer with a float32 weight of its own; None for every other node."""
    if len(node.inputs) < 2 or node.domain not in ("", "ai.onnx"):
        return None
    weight = network.tensors.get(node.inputs[1])
    bias = network.tensors.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    if weight is None or weight.dtype != np.float32 or (len(node.inputs) > 2 and node.inputs[2] and bias is None):
        return None
    if node.op == "Conv" and weight.ndim in (3, 4):
        return Convolution(node, network)
    is_plain = node.attributes.get("alpha", 1.0) == node.attributes.get("beta", 1.0) == 1.0 and not node.attributes.get(
        "transA", 0
    )
    if weight.ndim == 2 and (
        node.op == "MatMul" or (node.op == "Gemm" and is_plain and (bias is None or bias.ndim == 1))
    ):
        return Product(node, network)
    return None


def _nothing(name: str) -> Any:
    return None


def kept_outputs(layer: LinearLayer, network: Network) -> np.ndarray | None:
    """The original's output channels that the cut layer still has; None for all."""
    origin = network.origins[layer.weight]
    kept = origin.kept.get(layer.output_axis)
    if kept is not None and kept.ndim == 2:  # equal parts of axis 0, each with its own indices
        part = origin.shape[0] // len(kept)
        kept = (kept + np.arange(len(kept))[:, None] * part).reshape(-1)
    return None if kept is None else np.ascontiguousarray(kept, np.int64)
