"""Operators that arrange, select and scatter, against onnxruntime: stepped, recorded and scripted."""

import numpy as np
import pytest

from tests.worker.compressor.graph.operators.single import check

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 8, 4, 6)).astype(np.float32)
ROWS = RNG.standard_normal((3, 7)).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


CASES = [
    ("Tile", 7, [X, ints(1, 2, 1, 3)], {}),
    ("Tile", 13, [X, ints(1, 1, 2, 1)], {}),
    ("DepthToSpace", 7, [X], {"blocksize": 2}),
    ("DepthToSpace", 11, [X], {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", 13, [X], {"blocksize": 2, "mode": "DCR"}),
    ("SpaceToDepth", 13, [X], {"blocksize": 2}),
    ("GatherElements", 11, [ROWS, RNG.integers(0, 7, (3, 4))], {"axis": 1}),
    ("GatherElements", 13, [ROWS, RNG.integers(-7, 7, (3, 4))], {"axis": 1}),
    ("ScatterElements", 13, [ROWS, RNG.permutation(7)[None, :3].repeat(3, 0), ROWS[:, :3] * 9], {"axis": 1}),
    ("ScatterElements", 18, [ROWS, ints(1, 1, 2)[None].repeat(3, 0), ROWS[:, :3]], {"axis": 1, "reduction": "add"}),
    ("ScatterND", 13, [ROWS, ints(0, 5, 2, 3).reshape(2, 2), np.array([7, 8], np.float32)], {}),
    ("GatherND", 12, [ROWS, ints(0, 5, 2, 3).reshape(2, 2)], {}),
    ("Trilu", 14, [ROWS, np.array(1, np.int64)], {"upper": 1}),
    ("Trilu", 14, [ROWS], {"upper": 0}),
    ("Pad", 13, [X, ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    ("Pad", 13, [X, ints(0, 0, 1, 0, 0, 0, -1, 2), np.array(1.5, np.float32)], {}),
    ("Pad", 19, [X, ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "wrap"}),
]


class TestPlaces:
    @pytest.mark.parametrize("case", CASES, ids=[f"{op}-{opset}-{i}" for i, (op, opset, *_) in enumerate(CASES)])
    def test_computes_what_onnxruntime_does(self, case, tmp_path):
        op, opset, inputs, attributes = case
        check(op, inputs, opset, tmp_path, **attributes)
