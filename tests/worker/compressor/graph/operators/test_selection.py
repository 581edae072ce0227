"""TopK, Unique, NonZero, Compress, OneHot and the tail of detectors against onnxruntime."""

import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6, 5)).astype(np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


class TestSelection:
    @pytest.mark.parametrize(
        ("opset", "extra", "attributes"),
        [(7, [], {"k": 3}), (10, [ints(3)], {}), (11, [ints(2)], {"largest": 0, "axis": 1})],
    )
    def test_top_k(self, opset, extra, attributes, tmp_path):
        check("TopK", [np.round(X, 1), *extra], opset, tmp_path, num_outputs_made=2, **attributes)

    @pytest.mark.parametrize("attributes", [{}, {"sorted": 0}, {"axis": 0}, {"axis": -1, "sorted": 0}])
    def test_unique(self, attributes, tmp_path):
        x = np.concatenate([np.round(X[:2, :2, :3]), np.round(X[:1, :2, :3])])
        check("Unique", [x], 11, tmp_path, num_outputs_made=4, **attributes)

    def test_non_zero(self, tmp_path):
        check("NonZero", [np.round(X)], 9, tmp_path)

    @pytest.mark.parametrize("attributes", [{"axis": 1}, {"axis": -1}, {}])
    def test_compress(self, attributes, tmp_path):
        check("Compress", [X, np.array([False, True, True, False])], 9, tmp_path, **attributes)

    @pytest.mark.parametrize("axis", [-1, 1])
    def test_one_hot(self, axis, tmp_path):
        values = np.array([0.5, 2.0], np.float32)
        check("OneHot", [ints(1, -2, 9, 0), np.array(4), values], 9, tmp_path, axis=axis)


class TestDetection:
    @pytest.mark.parametrize("centred", [0, 1])
    def test_boxes(self, centred, tmp_path):
        boxes, scores = RNG.random((2, 30, 4)).astype(np.float32), RNG.random((2, 3, 30)).astype(np.float32)
        limits = [np.array([5]), np.array([0.4], np.float32), np.array([0.3], np.float32)]
        check("NonMaxSuppression", [boxes, scores, *limits], 11, tmp_path, fed=2, center_point_box=centred)

    @pytest.mark.parametrize("attributes", [{}, {"mode": "max"}])
    def test_regions(self, attributes, tmp_path):
        regions = np.array([[0, 0, 8, 8], [2, 1, 7, 5], [-2, 3, 4, 12]], np.float32)
        x = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
        check(
            "RoiAlign",
            [x, regions, ints(0, 1, 1)],
            16,
            tmp_path,
            output_height=3,
            output_width=2,
            sampling_ratio=2,
            **attributes,
        )


class TestWarping:
    @pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
    @pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
    def test_grid_sample(self, mode, padding, tmp_path):
        x = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
        grid = (RNG.random((2, 4, 4, 2)) * 2.4 - 1.2).astype(np.float32)
        check("GridSample", [x, grid], 16, tmp_path, fed=2, mode=mode, padding_mode=padding, align_corners=1)

    def test_affine_grid(self, tmp_path):
        theta = RNG.standard_normal((2, 2, 3)).astype(np.float32)
        check("AffineGrid", [theta, ints(2, 3, 4, 5)], 20, tmp_path)


class TestTriangle:
    @pytest.mark.parametrize("upper", [0, 1])
    def test_trilu(self, upper, tmp_path):
        check("Trilu", [X, np.array(-1)], 14, tmp_path, upper=upper)

    def test_eye_like(self, tmp_path):
        check("EyeLike", [X[0]], 9, tmp_path, k=1)
