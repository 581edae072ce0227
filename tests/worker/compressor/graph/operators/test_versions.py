"""Every operator in each of its versions since opset 7, at the lowest opset that has it, against onnxruntime."""

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.worker.compressor.graph.operators.single import check
from worker.compressor.graph.operator import OPERATORS

RNG = np.random.default_rng(0)
OLDEST = 7
#: onnxruntime has no kernel for these at all, or for no type that they are tried with; the node tests cover the newest.
WITHOUT_KERNEL = {("GlobalLpPool", 22)}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*shape, low=-9, high=10, dtype=np.int64):
    return RNG.integers(low, high, shape).astype(dtype)


def axes_of(version, since, numbers):
    """Axes as ONNX says them: an attribute before a version, an input since."""
    return ({"axes": numbers}, []) if version < since else ({}, [np.array(numbers, np.int64)])


X = normal(3, 4, 5)
PICTURE = normal(2, 4, 7, 6)
INSIDE = np.tanh(X)
POSITIVE = np.abs(X) + 0.2
SCALE, BIAS = normal(4), normal(4)
NEWEST_OF_RUNTIME = 25  # onnxruntime refuses newer files, or has no kernels for them


def alone(x, **attributes):
    return lambda version: ([x], 1, attributes)


def pair(a, b, **attributes):
    return lambda version: ([a, b], 2, attributes)


def reduction(since):
    def build(version):
        attributes, more = axes_of(version, since, [0, 2])
        return [X if version < 28 else POSITIVE, *more], 1, {**attributes, "keepdims": 0}

    return build


def positive_reduction(version):
    attributes, more = axes_of(version, 18, [1])
    return [POSITIVE, *more], 1, attributes


def clip(version):
    if version < 11:
        return [X], 1, {"min": -0.5, "max": 0.7}
    return [X, np.float32(-0.5), np.float32(0.7)], 1, {}


def attention(version):
    return [normal(2, 4, 5, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 3)], 3, {"scale": 0.3}


BITS = whole(3, 4, low=0, high=250, dtype=np.uint8)
POOL = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}
CASES = {
    **{op: alone(X) for op in (
        "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Softsign", "HardSwish", "Mish", "LeakyRelu", "HardSigmoid", "Elu",
        "Selu", "Celu", "ThresholdedRelu", "Gelu", "Abs", "Neg", "Floor", "Ceil", "Exp", "Sin", "Cos", "Tan", "Atan", "Sinh",
        "Cosh", "Asinh", "Sign", "Round", "IsNaN", "IsInf", "Shrink", "Swish", "Softmax", "LogSoftmax", "Hardmax", "ArgMax",
        "ArgMin",
    )},
    **{op: alone(POSITIVE) for op in ("Sqrt", "Log", "Reciprocal")},
    **{op: alone(INSIDE) for op in ("Asin", "Acos", "Atanh")},
    "Acosh": alone(POSITIVE + 1),
    "Clip": clip,
    "PRelu": lambda version: ([X, normal(4, 1)], 1, {}),
    "SwiGLU": pair(X, X + 1),
    **{op: pair(X, normal(4, 1)) for op in ("Add", "Sub", "Mul", "Div", "Pow") if op != "Pow"},
    "Pow": pair(POSITIVE, normal(3, 1, 5)),
    **{op: pair(X, X * X) for op in ("Sum", "Mean", "Max", "Min")},
    "Mod": pair(whole(3, 4), whole(3, 4, low=1)),
    **{op: pair(X, np.round(X)) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    "Equal": pair(whole(9, low=0, high=2), whole(9, low=0, high=2)),
    **{op: pair(X > 0, X > 1) for op in ("And", "Or", "Xor")},
    "Not": alone(X > 0),
    **{op: pair(whole(3, 4), whole(4)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")},
    "BitwiseNot": alone(whole(3, 4)),
    "BitShift": pair(BITS, whole(3, 4, low=0, high=8, dtype=np.uint8), direction="RIGHT"),
    **{op: reduction(18) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                                    "ReduceLogSumExp", "ReduceSumSquare")},
    "ReduceSum": reduction(13),
    "ReduceLogSum": positive_reduction,
    "CumSum": lambda version: ([X, np.array(1, np.int64)], 1, {"exclusive": 1, "reverse": 1}),
    "MaxPool": alone(PICTURE, **POOL),
    "AveragePool": alone(PICTURE, **POOL),
    "LpPool": alone(PICTURE, **POOL, p=3),
    **{op: alone(PICTURE) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")},
    "Conv": lambda version: ([PICTURE, normal(6, 2, 3, 3), normal(6)], 1, {"group": 2, "pads": [1, 0, 0, 2]}),
    "ConvTranspose": lambda version: ([PICTURE, normal(4, 3, 3, 2), normal(3)], 1, {"strides": [2, 1]}),
    "BatchNormalization": lambda version: ([PICTURE, SCALE, BIAS, normal(4), np.abs(normal(4))], 1, {}),
    "InstanceNormalization": lambda version: ([PICTURE, SCALE, BIAS], 1, {"epsilon": 0.01}),
    "GroupNormalization": lambda version: ([PICTURE, SCALE, BIAS], 1, {"num_groups": 2}),
    "LayerNormalization": lambda version: ([X, normal(4, 5), normal(4, 5)], 1, {"axis": 1}),
    "RMSNormalization": lambda version: ([X, normal(5)], 1, {}),
    "LRN": alone(PICTURE, size=3, alpha=0.3),
    "LpNormalization": alone(X, p=1, axis=1),
    "MeanVarianceNormalization": alone(PICTURE),
    "Gemm": lambda version: ([normal(3, 4), normal(5, 4), normal(5)], 1, {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "MatMul": pair(normal(3, 4), normal(4)),
    "Einsum": pair(normal(2, 3, 4), normal(2, 5, 4), equation="bij,bkj->bik"),
    "Det": alone(normal(2, 3, 3)),
    "Trilu": lambda version: ([X, np.array(1, np.int64)], 1, {"upper": 0}),
    "EyeLike": alone(normal(3, 4), k=1),
    "CastLike": pair(X * 3, whole(1, dtype=np.int32)),
    "Attention": attention,
    "RotaryEmbedding": lambda version: (
        [normal(2, 4, 3, 8), normal(9, 4), normal(9, 4), whole(2, 3, low=0, high=9)], 1, {}),
}  # fmt: skip


def versions():
    for op in CASES:
        known = sorted(version for name, version in OPERATORS if name == op)
        for version in known:
            if (op, version) not in WITHOUT_KERNEL and version <= NEWEST_OF_RUNTIME:
                yield op, version


@pytest.mark.parametrize(("op", "version"), list(versions()))
def test_each_version_as_onnxruntime(op, version, tmp_path):
    inputs, fed, attributes = CASES[op](version)
    inputs = [None if array is None else np.asarray(array) for array in inputs]
    try:
        check(op, inputs, max(version, OLDEST), tmp_path, fed=fed, **attributes)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        pytest.fail(f"list it in WITHOUT_KERNEL: {error}")


@pytest.mark.parametrize("op", sorted(CASES))
def test_no_version_is_left_out(op):
    newest = onnx.defs.onnx_opset_version()
    schemas = [onnx.defs.get_schema(op, opset) for opset in range(OLDEST, newest + 1) if onnx.defs.has(op, opset)]
    wanted = {schema.since_version for schema in schemas if not schema.deprecated}
    assert wanted <= {version for name, version in OPERATORS if name == op}
