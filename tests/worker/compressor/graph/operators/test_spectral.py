"""Fourier transforms, windows and mel weights against onnxruntime, and a network that hears through them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.worker.compressor.graph import nets
from tests.worker.compressor.graph.operators.single import check
from worker.compressor.graph.channels.analysis import analyse
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.surgery import cut, masked

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((3, 8, 6, 1)).astype(np.float32)
COMPLEX = RNG.standard_normal((3, 8, 6, 2)).astype(np.float32)
SOUND = RNG.standard_normal((2, 40, 1)).astype(np.float32)
WINDOW = np.hanning(16).astype(np.float32)


def whole(number):
    return np.array(number, np.int64)


class TestTransform:
    @pytest.mark.parametrize("x", [REAL, COMPLEX], ids=["real", "complex"])
    @pytest.mark.parametrize("attributes", [{}, {"axis": 2}, {"inverse": 1}])
    def test_by_attribute(self, x, attributes, tmp_path):
        check("DFT", [x], 17, tmp_path, **attributes)

    @pytest.mark.parametrize("axis", [1, -2])
    def test_by_input(self, axis, tmp_path):
        check("DFT", [COMPLEX, None, whole(axis)], 20, tmp_path)

    @pytest.mark.parametrize("length", [5, 11])
    def test_one_sided_of_another_length(self, length, tmp_path):
        check("DFT", [REAL, whole(length)], 17, tmp_path, onesided=1)


class TestShortTime:
    @pytest.mark.parametrize("rest", [[WINDOW], [WINDOW, whole(16)], [None, whole(10)]], ids=["w", "wl", "l"])
    @pytest.mark.parametrize("onesided", [0, 1])
    def test_of_a_signal(self, rest, onesided, tmp_path):
        check("STFT", [SOUND, whole(7), *rest], 17, tmp_path, onesided=onesided)


def hearing_net():
    """Spectrum by STFT with a computed window, mel bands, two convolutions over time."""
    arrays = {
        "size": whole(16), "step": whole(8), "bands": whole(6), "rate": whole(8000), "power": np.float32(2),
        "low": np.float32(0), "high": np.float32(4000), "axes": np.array([-1]), "ones": np.array([3]),
        "w1": 0.3 * RNG.standard_normal((12, 6, 3)).astype(np.float32),
        "w2": 0.3 * RNG.standard_normal((4, 12, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["signal"], name="signal"),
        helper.make_node("HannWindow", ["size"], ["window"], name="window"),
        helper.make_node("STFT", ["signal", "step", "window", "size"], ["parts"], name="stft"),
        helper.make_node("Pow", ["parts", "power"], ["squares"], name="squares"),
        helper.make_node("ReduceSum", ["squares", "ones"], ["spectrum"], name="spectrum", keepdims=0),
        helper.make_node("MelWeightMatrix", ["bands", "size", "rate", "low", "high"], ["mel"], name="mel"),
        helper.make_node("MatMul", ["spectrum", "mel"], ["heard"], name="heard"),
        helper.make_node("Transpose", ["heard"], ["rows"], name="rows", perm=[0, 2, 1]),
        helper.make_node("Conv", ["rows", "w1"], ["c1"], name="c1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="r1"),
        helper.make_node("Conv", ["r1", "w2"], ["y"], name="c2"),
    ]
    graph = helper.make_graph(
        nodes, "hearing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 80])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, None])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestNetworkThatHears:
    def test_its_layers_are_cut_and_its_spectrum_stays(self, tmp_path):
        model = hearing_net()
        onnx.save(model, tmp_path / "n.onnx")
        network, _ = import_model(tmp_path / "n.onnx", "onnx", None)
        x = {"x": RNG.standard_normal((3, 80)).astype(np.float32)}
        assert nets.difference(nets.reference(model, x)[0], run(network, x)["y"]) < 1e-5
        analysis = analyse(network, network.sample_shapes)
        assert [group.num_units for group in analysis.groups] == [12]
        result = cut(network, analysis, nets.random_kept(analysis.groups, 0.5))
        wanted = run(masked(network, analysis, result.kept), x)["y"]
        assert nets.difference(wanted, run(result.network, x)["y"]) < 1e-6
        assert nets.difference(run(network, x)["y"], run(result.network, x)["y"]) > 1e-2
