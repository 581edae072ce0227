"""Activations and arithmetic against onnxruntime, in every version that means something else."""

import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check, load, one_node
from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((3, 4, 5)) * 3).astype(np.float32)
VECTOR = RNG.uniform(0.5, 1.5, (4, 1)).astype(np.float32)


class TestActivation:
    @pytest.mark.parametrize(
        ("op", "opset", "attributes"),
        [
            ("Relu", 7, {}),
            ("Sigmoid", 13, {}),
            ("Tanh", 13, {}),
            ("Erf", 9, {}),
            ("Softplus", 7, {}),
            ("Softsign", 7, {}),
            ("HardSwish", 14, {}),
            ("Mish", 18, {}),
            ("LeakyRelu", 7, {"alpha": 0.2}),
            ("HardSigmoid", 7, {}),
            ("HardSigmoid", 17, {"alpha": 1 / 6, "beta": 0.5}),
            ("Elu", 7, {"alpha": 0.7}),
            ("Selu", 7, {}),
            ("Selu", 7, {"alpha": 1.1, "gamma": 0.9}),
            ("Celu", 12, {"alpha": 0.5}),
            ("ThresholdedRelu", 10, {"alpha": 0.4}),
            ("Gelu", 20, {}),
            ("Gelu", 20, {"approximate": "tanh"}),
            ("Clip", 7, {"min": -1.0, "max": 2.0}),
            ("Sqrt", 13, {}),
            ("Exp", 13, {}),
            ("Abs", 13, {}),
            ("Neg", 13, {}),
            ("Reciprocal", 13, {}),
            ("Floor", 13, {}),
            ("Ceil", 13, {}),
            ("Identity", 13, {}),
            ("Dropout", 7, {"ratio": 0.5}),
        ],
    )
    def test_as_onnxruntime(self, op, opset, attributes, tmp_path):
        x = np.abs(X) + 0.5 if op in ("Sqrt", "Reciprocal") else X
        check(op, [x], opset, tmp_path, **attributes)

    @pytest.mark.parametrize("limits", [(-1.0, 2.0), (None, 0.5), (0.0, None)])
    def test_clip_with_limits_as_inputs(self, limits, tmp_path):
        inputs = [None if limit is None else np.array(limit, np.float32) for limit in limits]
        check("Clip", [X, *inputs], 13, tmp_path)

    def test_where_of_two_numbers_has_their_type(self, tmp_path):
        condition = X > 0
        network = check("Where", [condition, np.float16(0.5), np.float16(-2)], 16, tmp_path)
        assert run(network, {"i0": condition})["o0"].dtype == np.float16

    @pytest.mark.parametrize("slope", [VECTOR, np.full((1,), 0.3, np.float32), VECTOR.repeat(5, 1)])
    def test_prelu_broadcasts(self, slope, tmp_path):
        check("PRelu", [X, slope], 16, tmp_path)


class TestSoftmax:
    @pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
    @pytest.mark.parametrize(("opset", "axis"), [(7, 1), (11, 2), (11, 1), (11, -1), (12, 0), (13, 1), (13, -1)])
    def test_before_13_it_flattens(self, op, opset, axis, tmp_path):
        check(op, [X], opset, tmp_path, axis=axis)


class TestArithmetic:
    @pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
    @pytest.mark.parametrize("other", [VECTOR, np.float32(0.7), np.full((1,), 3.0, np.float32), np.abs(X) + 1])
    def test_broadcasts_as_onnxruntime(self, op, other, tmp_path):
        check(op, [X, np.asarray(other, np.float32)], 13, tmp_path)

    @pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
    def test_of_several_inputs(self, op, tmp_path):
        check(op, [X, VECTOR, X[::-1].copy()], 13, tmp_path)

    def test_power(self, tmp_path):
        check("Pow", [X, np.float32(2.0)], 13, tmp_path)

    def test_two_inputs_of_the_network(self, tmp_path):
        check("Add", [X, X * 2], 7, tmp_path, fed=2)


class TestUnknown:
    def test_an_operator_nobody_wrote_is_refused_with_its_node(self, tmp_path):
        with pytest.raises(ImportFailed, match=r"node 'node' uses the operator MaxRoiPool-1") as caught:
            load(one_node("MaxRoiPool", [X[None], np.zeros((1, 5), np.float32)], 11, pooled_shape=[1, 1]), tmp_path)
        assert caught.value.code == "unsupported_operator"
