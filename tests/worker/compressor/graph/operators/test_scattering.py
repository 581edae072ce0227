"""Reading and writing by index against onnxruntime."""

import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6, 5)).astype(np.float32)


class TestGather:
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_elements(self, axis, tmp_path):
        check("GatherElements", [X, RNG.integers(-4, 4, X.shape)], 11, tmp_path, axis=axis)

    @pytest.mark.parametrize(("shape", "batch_axes"), [((3, 2), 0), ((4, 2, 1), 1), ((2, 3), 0)])
    def test_rows(self, shape, batch_axes, tmp_path):
        check("GatherND", [X, RNG.integers(-4, 4, shape)], 12, tmp_path, batch_dims=batch_axes)


class TestScatter:
    @pytest.mark.parametrize(("op", "opset"), [("Scatter", 9), ("ScatterElements", 11)])
    def test_elements(self, op, opset, tmp_path):
        indices = np.argsort(RNG.random((4, 3, 5)), axis=1)
        check(op, [X, indices, RNG.standard_normal((4, 3, 5)).astype(np.float32)], opset, tmp_path, axis=1)

    @pytest.mark.parametrize("how", ["add", "mul", "max", "min"])
    def test_combined_elements(self, how, tmp_path):
        updates = RNG.standard_normal((4, 3, 5)).astype(np.float32)
        check("ScatterElements", [X, RNG.integers(-6, 6, (4, 3, 5)), updates], 18, tmp_path, axis=1, reduction=how)

    def test_rows(self, tmp_path):
        updates = RNG.standard_normal((2, 5)).astype(np.float32)
        check("ScatterND", [X, np.array([[0, 1], [-1, 3]]), updates], 11, tmp_path)

    @pytest.mark.parametrize("how", ["add", "mul", "max", "min"])
    def test_combined_rows(self, how, tmp_path):
        updates = RNG.standard_normal((3, 5)).astype(np.float32)
        check("ScatterND", [X, np.array([[0, 1], [3, 3], [0, 1]]), updates], 18, tmp_path, reduction=how)
