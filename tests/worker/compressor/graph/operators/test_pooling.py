import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


class TestMaxPool:
    @pytest.mark.parametrize("spatial", [(9,), (9, 8), (6, 5, 7)])
    def test_any_number_of_axes(self, spatial, tmp_path):
        check(
            "MaxPool",
            [normal(2, 3, *spatial)],
            12,
            tmp_path,
            kernel_shape=[2] * len(spatial),
            strides=[2] * len(spatial),
        )

    @pytest.mark.parametrize(
        "attributes",
        [
            {"pads": [1, 1, 1, 1]},
            {"pads": [0, 0, 1, 1]},
            {"ceil_mode": 1},
            {"dilations": [2, 2]},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER"},
        ],
    )
    def test_padding_and_rounding(self, attributes, tmp_path):
        check("MaxPool", [normal(1, 2, 10, 9)], 12, tmp_path, kernel_shape=[3, 3], strides=[2, 2], **attributes)


class TestAveragePool:
    @pytest.mark.parametrize("include", [0, 1])
    @pytest.mark.parametrize(
        "attributes", [{}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}]
    )
    def test_padding_counts_or_not(self, include, attributes, tmp_path):
        options = {"kernel_shape": [3, 3], "strides": [2, 2], "count_include_pad": include, **attributes}
        check("AveragePool", [normal(1, 2, 9, 9)], 11, tmp_path, **options)


class TestGlobal:
    @pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
    @pytest.mark.parametrize("spatial", [(9,), (9, 8), (3, 4, 5)])
    def test_over_all_spatial_axes(self, op, spatial, tmp_path):
        check(op, [normal(2, 3, *spatial)], 7, tmp_path)


class TestReduce:
    @pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"])
    @pytest.mark.parametrize("keepdims", [0, 1])
    def test_axes_as_attribute(self, op, keepdims, tmp_path):
        check(op, [normal(2, 3, 4, 5)], 11, tmp_path, axes=[-1, 1], keepdims=keepdims)

    @pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
    def test_axes_as_input(self, op, tmp_path):
        check(op, [normal(2, 3, 4, 5), np.array([2, 3])], 18, tmp_path)

    def test_no_axes_are_all(self, tmp_path):
        check("ReduceSum", [normal(2, 3, 4)], 11, tmp_path)

    def test_no_axes_may_mean_none(self, tmp_path):
        check("ReduceSum", [normal(2, 3, 4)], 13, tmp_path, noop_with_empty_axes=1)


class TestBatchNormalization:
    @pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 2, 3, 2)])
    def test_any_rank(self, shape, tmp_path):
        vectors = [normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.1]
        check("BatchNormalization", [normal(*shape), *vectors], 14, tmp_path, epsilon=1e-3)
