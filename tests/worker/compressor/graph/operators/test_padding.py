"""Pad and CenterCropPad against onnxruntime (wrap, which it has since opset 19, too)."""

import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check, load, one_node
from worker.compressor.errors import ImportFailed

X = np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


class TestPad:
    @pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
    @pytest.mark.parametrize("pads", [(0, 0, 1, 2, 0, 0, 2, 1), (0, 2, 0, 1, 0, 1, 3, 0), (0, 0, -1, 2, 0, 0, 1, -1)])
    def test_modes_on_any_axis(self, mode, pads, tmp_path):
        check("Pad", [X, ints(*pads)], 13, tmp_path, mode=mode)

    def test_wrap(self, tmp_path):
        check("Pad", [X, ints(0, 0, 1, 2, 0, 0, 2, 1)], 19, tmp_path, mode="wrap")

    def test_a_value_and_axes(self, tmp_path):
        check("Pad", [X, ints(1, 2), np.array(0.5, np.float32), ints(1)], 18, tmp_path)

    def test_of_old(self, tmp_path):
        check("Pad", [X], 7, tmp_path, pads=[0, 1, 0, 0, 0, 1, 0, 0], value=1.5)

    def test_a_value_from_data_is_refused(self, tmp_path):
        model = one_node("Pad", [X, np.array(0.5, np.float32), ints(0, 0, 1, 1, 0, 0, 1, 1)], 13, fed=2)
        model.graph.node[0].input[:] = ["i0", "i2", "i1"]
        with pytest.raises(ImportFailed, match="value that it pads with"):
            load(model, tmp_path)


class TestCenterCropPad:
    @pytest.mark.parametrize("size", [(2, 8), (7, 2), (3, 4)])
    def test_as_onnxruntime(self, size, tmp_path):
        check("CenterCropPad", [X, ints(*size)], 18, tmp_path, axes=[2, 3])
