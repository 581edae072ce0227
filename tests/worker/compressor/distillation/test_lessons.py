"""What a step of training sees."""

import numpy as np
import pytest
import torch

from tests.worker.compressor.networks import pictures
from worker.compressor.data.dataset import Rows
from worker.compressor.data.mixing import MIXED
from worker.compressor.data.preprocess import Preparation
from worker.compressor.distillation.lessons import MixedRows

X, Y = pictures(40)
CPU = torch.device("cpu")


def rows(array, dtype):
    return Rows("train", (array,), Y, np.arange(len(array)), (Preparation("image", dtype, None),))


class TestMixedRows:
    def test_pictures_are_mixed_in_pairs_and_answered_as_mixed(self):
        lessons = MixedRows(rows(X, "float32"), CPU, lambda x: (x * 2,))
        positions = np.array([3, 1, 4, 15, 9])
        lesson = lessons.at(positions, np.random.default_rng(7))
        rng, plain = np.random.default_rng(7), X[positions].astype(np.float32)
        order, shares = rng.permutation(5), rng.uniform(0, MIXED, 5)
        for i, made in enumerate(lesson.inputs[0].numpy()):
            np.testing.assert_allclose(made, (1 - shares[i]) * plain[i] + shares[i] * plain[order[i]], rtol=1e-5)
        assert torch.equal(lesson.taught[0], lesson.inputs[0] * 2)
        assert lesson.labels is None and not lesson.taught[0].requires_grad

    def test_whole_numbers_stay_as_they_are(self):
        lesson = MixedRows(rows(X, "int64"), CPU, lambda x: (x,)).at(np.arange(6), np.random.default_rng(0))
        np.testing.assert_array_equal(lesson.inputs[0].numpy(), X[:6])

    def test_half_precision_stays_half(self):
        lesson = MixedRows(rows(X, "float16"), CPU, lambda x: (x,)).at(np.arange(6), np.random.default_rng(0))
        assert lesson.inputs[0].dtype == torch.float16


@pytest.mark.parametrize("count", [1, 40])
def test_length_is_that_of_the_rows(count):
    assert len(MixedRows(rows(X[:count], "float32"), CPU, lambda x: (x,))) == count
