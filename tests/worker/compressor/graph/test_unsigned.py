"""Unsigned numbers that torch has no kernels for, with values of the upper half, against numpy."""

import numpy as np
import pytest
import torch

from tests.worker.compressor.graph.operators.single import load, one_node
from worker.compressor.graph.evaluation import as_tensor, run
from worker.compressor.graph.training.executor import to_module

OPERATIONS = {
    "Add": (14, np.add),
    "Sub": (14, np.subtract),
    "Mul": (14, np.multiply),
    "Max": (13, np.maximum),
    "Min": (13, np.minimum),
    "Greater": (13, np.greater),
    "LessOrEqual": (16, np.less_equal),
    "BitwiseXor": (18, np.bitwise_xor),
    "BitShift": (28, np.right_shift),
}


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("op", OPERATIONS)
def test_as_numpy(op, dtype, tmp_path):
    opset, function = OPERATIONS[op]
    largest = np.iinfo(dtype).max
    a = np.array([0, 1, 7, largest // 2, largest // 2 + 1, largest - 1, largest], dtype)
    b = np.array([1, 0, 3, 2, 1, 5, 7], dtype)
    attributes = {"direction": "RIGHT"} if op == "BitShift" else {}
    network = load(one_node(op, [a, b], opset, fed=2, **attributes), tmp_path)
    feeds = {"i0": a, "i1": b}
    with np.errstate(over="ignore"):
        wanted = function(a, b)
    np.testing.assert_array_equal(run(network, feeds)["o0"], wanted)
    network.sample_shapes = {name: array.shape for name, array in feeds.items()}
    module = torch.jit.script(to_module(network, single=True))
    np.testing.assert_array_equal(module(as_tensor(a), as_tensor(b)).numpy(), wanted)
