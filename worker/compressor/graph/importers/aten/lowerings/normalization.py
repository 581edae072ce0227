"""Normalisations in inference mode."""

from __future__ import annotations

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Number, Tensor, Unsupported, Value


@lowers("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(
    to: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool = False, momentum: Number = 0.1, eps: float = 1e-5,
) -> ir.Value:  # fmt: skip
    """BatchNorm by its running statistics; of one sample (a weight that is standardised) by its own."""
    if training and running_mean is None and running_var is None and input.size(0) == 1 and input.rank > 2:
        axes = list(range(2, input.rank))
        centred = to.emit("Sub", input, to.emit("ReduceMean", input, axes=axes, keepdims=1))
        variance = to.emit("ReduceMean", to.emit("Mul", centred, centred), axes=axes, keepdims=1)
        small = to.build.scalar(eps, input.dtype)
        made = to.emit("Div", centred, to.emit("Sqrt", to.emit("Add", variance, small)))
        return _affine(to, made, weight, bias, input.rank)
    if training or running_mean is None or running_var is None:
        raise Unsupported("normalises by the statistics of the batch; call eval() before saving")
    scale = _filled(to, running_mean, 1.0) if weight is None else weight.value
    shift = _filled(to, running_mean, 0.0) if bias is None else bias.value
    return to.emit("BatchNormalization", input, scale, shift, running_mean, running_var, epsilon=float(eps))


@lowers("layer_norm", "native_layer_norm")
def layer_norm(
    to: Call, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> ir.Value:  # fmt: skip
    """LayerNorm over the last axes."""
    scale = weight.value if weight is not None else _ones(to, normalized_shape, input.dtype)
    return to.emit("LayerNormalization", input, scale, bias, axis=-len(normalized_shape), epsilon=float(eps))


@lowers("group_norm")
def group_norm(
    to: Call, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> ir.Value:  # fmt: skip
    """Each group of channels as one instance, then scale and shift per channel."""
    flat = to.emit("Reshape", input, [0, num_groups, -1])
    ones, zeros = (to.build.known(torch.full([num_groups], v, dtype=input.dtype)).value for v in (1.0, 0.0))
    normal = to.emit("InstanceNormalization", flat, ones, zeros, epsilon=float(eps))
    whole = to.emit("Reshape", normal, shape_of(to, input))
    return _affine(to, whole, weight, bias, input.rank)


@lowers("native_group_norm")
def native_group_norm(
    to: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, group: int, eps: float, **sizes: Value
) -> ir.Value:
    """GroupNorm as exported programs have it."""
    return group_norm(to, input, group, weight, bias, eps)


@lowers("instance_norm")
def instance_norm(
    to: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, use_input_stats: bool, momentum: Number = 0.1, eps: float = 1e-5,
) -> ir.Value:  # fmt: skip
    """InstanceNorm by each sample's statistics, or by running ones."""
    if not use_input_stats:
        return batch_norm(to, input, weight, bias, running_mean, running_var, False, momentum, eps)
    num_channels = input.size(1)
    if num_channels is None:
        raise Unsupported("normalises a number of channels that is not fixed")
    scale = weight.value if weight is not None else _ones(to, [num_channels], input.dtype)
    shift = bias.value if bias is not None else to.build.known(torch.zeros([num_channels], dtype=input.dtype)).value
    return to.emit("InstanceNormalization", input, scale, shift, epsilon=float(eps))


@lowers("rms_norm")
def rms_norm(
    to: Call, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> ir.Value:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axes."""
    small = torch.finfo(input.dtype).eps if eps is None else eps
    axes = list(range(-len(normalized_shape), 0))
    mean = to.emit("ReduceMean", to.emit("Mul", input, input), axes=axes, keepdims=1)
    made = to.emit("Div", input, to.emit("Sqrt", to.emit("Add", mean, to.build.scalar(small, input.dtype))))
    return made if weight is None else to.emit("Mul", made, weight)


@lowers("_weight_norm")
def weight_norm(to: Call, v: Tensor, g: Tensor, dim: int = 0) -> ir.Value:
    """`v * g / |v|`, the norm taken over all axes but `dim`; over all of them where `dim` is -1."""
    axes = [axis for axis in range(v.rank) if axis != dim]
    norm = to.emit("ReduceL2", v, axes=axes, keepdims=1)
    return to.emit("Mul", to.emit("Div", v, norm), g)


@lowers("local_response_norm")
def local_response_norm(
    to: Call, input: Tensor, size: int, alpha: Number = 1e-4, beta: Number = 0.75, k: Number = 1.0
) -> ir.Value:
    """Local response normalisation over channels."""
    return to.emit("LRN", input, size=size, alpha=float(alpha), beta=float(beta), bias=float(k))


def shape_of(to: Call, x: Tensor) -> ir.Value:
    """The shape of a tensor as an operand: constants where one axis at most is free."""
    free = [axis for axis in range(x.rank) if x.size(axis) is None]
    if len(free) <= 1:
        return to.build.ints([-1 if size is None else size for size in x.shape])
    return to.build.ints(to.build.shape(x))


def _affine(to: Call, x: ir.Value, weight: Tensor | None, bias: Tensor | None, rank: int) -> ir.Value:
    tail = [-1] + [1] * (rank - 2)
    if weight is not None:
        x = to.emit("Mul", x, to.emit("Reshape", weight, tail))
    return x if bias is None else to.emit("Add", x, to.emit("Reshape", bias, tail))


def _filled(to: Call, like: Tensor, number: float) -> ir.Value:
    return to.build.known(torch.full(like.trials[0].shape, number, dtype=like.dtype)).value


def _ones(to: Call, shape: list[int], dtype: torch.dtype) -> ir.Value:
    return to.build.known(torch.ones(shape, dtype=dtype)).value
