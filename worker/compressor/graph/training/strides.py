"""Kernels of one place that skip places: their inputs are skipped instead.

torch 2.13 writes past its buffers on a CPU in the gradient of a strided 1 × 1 convolution, where 2 to 7 channels come in and lie
channels last (the shortcuts of a narrow residual network): the process dies, or its numbers are wrong.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from worker.compressor.graph.training.fusion import SHAPE

#: Input, weight, bias, stride, padding, dilation, groups.
ALL_ARGUMENTS = 7


def skip_in_inputs(graph: fx.Graph, root: nn.Module) -> None:
    """Take every so-many-th place of the input in place of a stride, wherever the kernel has one place and nothing is padded."""
    for node in graph.find_nodes(op="call_function", target=torch.conv2d):
        if len(node.args) != ALL_ARGUMENTS:
            continue  # a sum over windows (LpPool), not a layer
        x, weight, bias, strides, pads, dilations, groups = node.args
        kernel = getattr(root, weight.target).shape[2:] if weight.op == "get_attr" else weight.meta.get(SHAPE, ())[2:]
        if tuple(kernel) != (1, 1) or any(pads) or max(strides) == 1:
            continue
        places = (slice(None), slice(None), *(slice(None, None, stride) for stride in strides))
        with graph.inserting_before(node):
            skipped = graph.call_function(operator.getitem, (x, places))
        node.args = (skipped, weight, bias, [1, 1], pads, dilations, groups)
