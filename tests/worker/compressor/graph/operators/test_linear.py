import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


class TestGemm:
    @pytest.mark.parametrize("opset", [7, 9, 11, 13])
    @pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
    def test_as_onnxruntime(self, opset, attributes, tmp_path):
        b = normal(5, 4) if attributes.get("transB") else normal(4, 5)
        check("Gemm", [normal(3, 4), b, normal(5)], opset, tmp_path, **attributes)

    def test_transposed_input_and_full_bias_as_onnxruntime(self, tmp_path):
        check("Gemm", [normal(4, 3), normal(4, 5), normal(3, 5)], 13, tmp_path, transA=1)

    def test_without_bias_as_onnxruntime(self, tmp_path):
        check("Gemm", [normal(3, 4), normal(4, 5)], 13, tmp_path)


class TestMatMul:
    @pytest.mark.parametrize(
        ("a", "b"), [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((3, 4), (4,))]
    )
    def test_as_onnxruntime(self, a, b, tmp_path):
        check("MatMul", [normal(*a), normal(*b)], 13, tmp_path)
