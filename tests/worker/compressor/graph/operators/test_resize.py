"""Resize and Upsample in every version and mode, against onnxruntime."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tests.worker.compressor.graph.nets import difference, reference
from tests.worker.compressor.graph.operators.single import check, load
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.training.executor import to_module

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 6, 5)).astype(np.float32)
EMPTY = np.zeros(0, np.float32)
NEAREST = list(
    itertools.product(
        ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"],
        ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"],
    )
)
SMOOTH = list(
    itertools.product(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"], ["linear", "cubic"])
)


def floats(*numbers):
    return np.array(numbers, np.float32)


def ints(*numbers):
    return np.array(numbers, np.int64)


class TestNearest:
    @pytest.mark.parametrize(("coordinates", "rounding"), NEAREST)
    @pytest.mark.parametrize("scales", [(2, 2), (3, 0.5), (1.3, 0.7)])
    def test_by_scales(self, coordinates, rounding, scales, tmp_path):
        check(
            "Resize",
            [X, EMPTY, floats(1, 1, *scales)],
            13,
            tmp_path,
            coordinate_transformation_mode=coordinates,
            nearest_mode=rounding,
        )

    @pytest.mark.parametrize(("coordinates", "rounding"), NEAREST)
    @pytest.mark.parametrize("sizes", [(12, 10), (9, 2), (7, 8)])
    def test_by_sizes(self, coordinates, rounding, sizes, tmp_path):
        check(
            "Resize",
            [X, None, None, ints(2, 3, *sizes)],
            19,
            tmp_path,
            coordinate_transformation_mode=coordinates,
            nearest_mode=rounding,
        )

    @pytest.mark.parametrize("factor", [3, 7, 41, 47])
    def test_whole_factors_pick_exactly(self, factor, tmp_path):
        check(
            "Resize",
            [RNG.standard_normal((1, 1, 1, 90)).astype(np.float32), EMPTY, floats(1, 1, 1, factor)],
            11,
            tmp_path,
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def test_whole_numbers(self, tmp_path):
        check("Resize", [(X * 9).astype(np.int32), EMPTY, floats(1, 1, 2, 2)], 13, tmp_path)

    def test_half_pixel_for_nearest_alone(self, tmp_path):
        check(
            "Resize",
            [X, EMPTY, floats(1, 1, 1.7, 0.6)],
            11,
            tmp_path,
            coordinate_transformation_mode="tf_half_pixel_for_nn",
            nearest_mode="floor",
        )


class TestSmooth:
    @pytest.mark.parametrize(("coordinates", "mode"), SMOOTH)
    @pytest.mark.parametrize("scales", [(2, 2), (3, 0.5), (1.3, 0.7)])
    def test_by_scales(self, coordinates, mode, scales, tmp_path):
        check(
            "Resize",
            [X, EMPTY, floats(1, 1, *scales)],
            11,
            tmp_path,
            mode=mode,
            coordinate_transformation_mode=coordinates,
        )

    @pytest.mark.parametrize(("coordinates", "mode"), SMOOTH)
    @pytest.mark.parametrize("sizes", [(12, 10), (1, 2), (7, 8)])
    def test_by_sizes(self, coordinates, mode, sizes, tmp_path):
        check(
            "Resize",
            [X, None, None, ints(2, 3, *sizes)],
            18,
            tmp_path,
            mode=mode,
            coordinate_transformation_mode=coordinates,
        )

    @pytest.mark.parametrize("mode", ["linear", "cubic"])
    @pytest.mark.parametrize("scales", [(2, 1.5), (0.6, 0.4)])
    def test_antialias(self, mode, scales, tmp_path):
        x = RNG.standard_normal((2, 3, 20, 15)).astype(np.float32)
        check("Resize", [x, None, floats(1, 1, *scales)], 18, tmp_path, mode=mode, antialias=1)

    @pytest.mark.parametrize("attributes", [{"exclude_outside": 1}, {"cubic_coeff_a": -0.5}])
    def test_cubic_of_other_kinds(self, attributes, tmp_path):
        check("Resize", [X, EMPTY, floats(1, 1, 2, 0.7)], 13, tmp_path, mode="cubic", **attributes)

    def test_symmetric_half_pixel(self, tmp_path):
        check(
            "Resize",
            [X, None, floats(1, 1, 1.3, 0.7)],
            19,
            tmp_path,
            mode="linear",
            coordinate_transformation_mode="half_pixel_symmetric",
        )

    @pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 4, 6, 5)])
    def test_other_ranks(self, shape, tmp_path):
        x = RNG.standard_normal(shape).astype(np.float32)
        check("Resize", [x, EMPTY, floats(1, 1, *([2] * (len(shape) - 2)))], 13, tmp_path, mode="linear")

    def test_channels_last(self, tmp_path):
        check("Resize", [X, EMPTY, floats(1, 2, 2, 1)], 13, tmp_path, mode="linear")

    def test_named_axes(self, tmp_path):
        check("Resize", [X, None, None, ints(9, 11)], 18, tmp_path, mode="linear", axes=[2, 3])

    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    def test_a_part_with_what_is_beyond_it(self, mode, tmp_path):
        check(
            "Resize",
            [X, floats(0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2), floats(1, 1, 1.5, 2)],
            13,
            tmp_path,
            mode=mode,
            coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=7.0,
        )


class TestOld:
    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    def test_upsample_7(self, mode, tmp_path):
        check("Upsample", [X], 7, tmp_path, mode=mode, scales=[1.0, 1.0, 2.0, 1.5])

    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    def test_upsample_9(self, mode, tmp_path):
        check("Upsample", [X, floats(1, 1, 2, 1.5)], 9, tmp_path, mode=mode)

    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    @pytest.mark.parametrize("scales", [(2, 3), (0.5, 0.6)])
    def test_resize_10(self, mode, scales, tmp_path):
        check("Resize", [X, floats(1, 1, *scales)], 10, tmp_path, mode=mode)


class TestComputedSizes:
    @pytest.mark.parametrize(
        "attributes",
        [
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"},
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        ],
        ids=lambda a: "-".join(a.values()),
    )
    def test_sizes_of_another_input_scripted_at_other_sizes(self, attributes, tmp_path):
        nodes = [
            helper.make_node("Shape", ["b"], ["shape"]),
            helper.make_node("Slice", ["shape", "two", "four"], ["spatial"]),
            helper.make_node("Shape", ["a"], ["own"]),
            helper.make_node("Slice", ["own", "zero", "two"], ["head"]),
            helper.make_node("Concat", ["head", "spatial"], ["sizes"], axis=0),
            helper.make_node("Resize", ["a", "", "", "sizes"], ["r"], **attributes),
            helper.make_node("Add", ["r", "b"], ["o"]),
        ]
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, f"{n}h", f"{n}w"]) for n in "ab"]
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 3, "bh", "bw"])
        constants = [onnx.numpy_helper.from_array(ints(n), name) for name, n in [("zero", 0), ("two", 2), ("four", 4)]]
        graph = helper.make_graph(nodes, "g", ports, [out], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        network = load(
            model,
            tmp_path,
            [
                {"name": "a", "dtype": "float32", "shape": [1, 3, 4, 5]},
                {"name": "b", "dtype": "float32", "shape": [1, 3, 8, 10]},
            ],
        )
        scripted = torch.jit.script(to_module(network).eval())
        for count, small, large in [(2, (4, 5), (8, 10)), (3, (3, 7), (5, 14))]:
            feeds = {
                "a": RNG.standard_normal((count, 3, *small)).astype(np.float32),
                "b": RNG.standard_normal((count, 3, *large)).astype(np.float32),
            }
            wanted = reference(model, feeds)[0]
            assert difference(wanted, run(network, feeds)["o"]) < 2e-6
            got = scripted(*(torch.from_numpy(array) for array in feeds.values()))[0]
            assert difference(wanted, got.detach().numpy()) < 2e-6


class TestAspectRatio:
    @pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
    def test_kept_as_onnxruntime_keeps_it(self, policy, tmp_path):
        check("Resize", [X, None, None, ints(9, 11)], 18, tmp_path, axes=[2, 3], keep_aspect_ratio_policy=policy)
