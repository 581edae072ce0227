import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check, load, one_node
from worker.compressor.graph.counts import count

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


class TestConv:
    @pytest.mark.parametrize("spatial", [(9,), (9, 8), (6, 5, 7)])
    @pytest.mark.parametrize("attributes", [{}, {"group": 2}, {"strides": 2, "pads": 1}, {"dilations": 2}])
    def test_any_number_of_axes_as_onnxruntime(self, spatial, attributes, tmp_path):
        axes = len(spatial)
        given = {
            key: [value] * (2 * axes if key == "pads" else axes) for key, value in attributes.items() if key != "group"
        }
        group = attributes.get("group", 1)
        weight = normal(6, 4 // group, *[3] * axes)
        check("Conv", [normal(2, 4, *spatial), weight, normal(6)], 17, tmp_path, group=group, **given)

    @pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
    @pytest.mark.parametrize(("size", "kernel", "stride"), [(9, 3, 2), (10, 3, 2), (10, 4, 1), (11, 5, 3), (8, 1, 2)])
    def test_auto_pad_as_onnxruntime(self, mode, size, kernel, stride, tmp_path):
        weight = normal(3, 2, kernel, kernel)
        check("Conv", [normal(1, 2, size, size), weight], 11, tmp_path, auto_pad=mode, strides=[stride] * 2)

    def test_uneven_pads_as_onnxruntime(self, tmp_path):
        check("Conv", [normal(1, 2, 7, 7), normal(3, 2, 3, 3)], 7, tmp_path, pads=[0, 1, 2, 0])

    def test_counts_are_output_times_kernel(self, tmp_path):
        network = load(one_node("Conv", [normal(1, 4, 8, 8), normal(6, 2, 3, 3), normal(6)], 17, group=2), tmp_path)
        counts = count(network, {"i0": (1, 4, 8, 8)})
        assert (counts.num_params, counts.macs) == (6 * 18 + 6, 6 * 36 * 18)


class TestConvTranspose:
    @pytest.mark.parametrize(
        "attributes", [{}, {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]}, {"group": 2}]
    )
    def test_as_onnxruntime(self, attributes, tmp_path):
        weight = normal(4, 3, 3, 3)
        channels = 3 * attributes.get("group", 1)
        check("ConvTranspose", [normal(2, 4, 5, 5), weight, normal(channels)], 17, tmp_path, **attributes)

    @pytest.mark.parametrize(
        "attributes",
        [
            {"pads": [0, 1, 1, 0]},
            {"pads": [0, 2, 1, 0], "strides": [2, 3], "group": 2},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 2], "dilations": [2, 1]},
            {"auto_pad": "VALID", "strides": [2, 2]},
            {"output_shape": [9, 10], "strides": [2, 2]},
            {"output_shape": [9, 10], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        ],
    )
    def test_every_way_to_say_the_padding(self, attributes, tmp_path):
        channels = 3 * attributes.get("group", 1)
        inputs = [normal(2, 4, 5, 5), normal(4, 3, 3, 3), normal(channels)]
        check("ConvTranspose", inputs, 17, tmp_path, kernel_shape=[3, 3], **attributes)
