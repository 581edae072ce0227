"""A free batch for training where the file fixes a batch of one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run, torch_dtype
from worker.compressor.graph.network import Network

_TRIED = 3
_TOLERANCE = 1e-4


def has_free_batch(network: Network) -> bool:
    """Whether the first axis of every input is free in the file."""
    return all(not port.shape or not isinstance(port.shape[0], int) for port in network.inputs)


def free_batch(network: Network) -> Network | None:
    """A copy that takes any batch, proven by computing f(3 samples) = 3 × f(1 sample); None where there is none.

    Tensor names are those of `network`, so weights trained in the copy go back into it by name. The file's own batch
    is not changed by this: export `network`, not the copy.
    """
    result = network.copy()
    for node in result.graph:
        if node.op_type == "Reshape" and _is_fixed(result, node):
            target = node.inputs[1]
            assert target is not None
            numbers = result.tensors[target.name or ""].copy()
            numbers[0] = 0 if -1 in numbers.tolist() else -1
            node.replace_input_with(1, result.add_tensor(f"{node.outputs[0].name}.free", numbers))
    for value in [*result.graph.inputs, *result.graph.outputs]:
        if value.shape is not None and len(value.shape) and value.shape[0] == 1:
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    result.changed()
    return result if _is_per_sample(network, result) else None


def _is_fixed(network: Network, node: ir.Node) -> bool:
    target = node.inputs[1]
    if target is None or target.name not in network.tensors:
        return False
    numbers = network.tensors[target.name].reshape(-1)
    return len(numbers) > 0 and numbers[0] == 1


def _is_per_sample(network: Network, freed: Network) -> bool:
    generator = torch.Generator().manual_seed(0)
    feeds = {}
    for port in network.inputs:
        shape = (_TRIED, *network.sample_shapes[port.name][1:])
        dtype = torch_dtype(port.dtype)
        plain = torch.randn(shape, generator=generator) if dtype.is_floating_point else torch.zeros(shape)
        feeds[port.name] = plain.to(dtype)
    try:
        together = run(freed, feeds)
    except (RuntimeError, IndexError, ValueError, ImportFailed):
        return False
    single = [run(network, {name: value[i : i + 1] for name, value in feeds.items()}) for i in range(_TRIED)]
    return all(_is_equal(np.concatenate([one[name] for one in single]), value) for name, value in together.items())


def _is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    scale = float(np.abs(a).max(initial=0.0)) or 1.0
    return a.shape == b.shape and float(np.abs(a - b).max(initial=0.0)) <= _TOLERANCE * scale
