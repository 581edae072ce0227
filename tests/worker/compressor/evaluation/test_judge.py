"""Which of two networks is chosen on the way."""

import numpy as np
import pytest

from worker.compressor.data.dataset import Rows
from worker.compressor.data.preprocess import Preparation
from worker.compressor.evaluation.judge import Judge, Score
from worker.compressor.evaluation.original import Original
from worker.compressor.evaluation.runtime import Runner

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((60, 4)).astype(np.float32), RNG.integers(0, 4, 60)
LABELLED = Rows("val", (X,), Y, np.arange(60), (Preparation("x", "float32", None),))
PLAIN = Rows("val", (X,), None, np.arange(60), LABELLED.preparations)


class Same(Runner):
    def run(self, feeds):
        return (feeds[0],)


def judge(rows, task="classification"):
    return Judge(rows, Original(Same(), "same", None), task, 0)


def perfect(scale):
    return lambda feeds: (
        np.eye(4, dtype=np.float32)[Y[[int(np.flatnonzero((row == X).all(1))[0]) for row in feeds[0]]]] * scale,
    )


def test_with_labels_the_metric_decides_and_their_likelihood_breaks_ties():
    sure, unsure, original = (
        judge(LABELLED)(perfect(8)),
        judge(LABELLED)(perfect(2)),
        judge(LABELLED)(lambda feeds: feeds),
    )
    assert sure.name == "accuracy" and sure.value == unsure.value == 1 and sure > unsure > original
    want = np.log(np.exp(2) / (np.exp(2) + 3))
    assert unsure.tie_break == pytest.approx(want, rel=1e-5)


def test_probabilities_are_taken_as_such():
    probabilities = lambda feeds: (np.exp(perfect(8)(feeds)[0]) / np.exp(perfect(8)(feeds)[0]).sum(-1, keepdims=True),)  # noqa: E731
    assert judge(LABELLED)(probabilities).tie_break == pytest.approx(judge(LABELLED)(perfect(8)).tie_break, abs=1e-5)


def test_without_labels_agreement_decides_and_closeness_breaks_ties():
    near, far = (judge(PLAIN, "none")(lambda feeds, s=scale: (feeds[0] * s,)) for scale in (1.01, 3.0))
    assert near.name == "agreement" and near.value == far.value == 1 and near > far


def test_one_is_surely_below_where_the_rows_say_more_than_chance():
    rows = np.ones(400)
    original = Score(1.0, 0.0, "accuracy", rows)
    few, many, worthless = rows.copy(), rows.copy(), Score(-np.inf, -np.inf, "accuracy", rows)
    few[:3], many[:20] = 0, 0
    assert not Score(few.mean(), 0.0, "accuracy", few).is_surely_below(original)
    assert Score(many.mean(), 0.0, "accuracy", many).is_surely_below(original)
    assert worthless.is_surely_below(original) and not original.is_surely_below(original)


def test_every_row_counts_as_it_does_in_the_metric():
    wrong = judge(LABELLED)(lambda feeds: (-perfect(8)(feeds)[0],))
    assert judge(LABELLED)(perfect(8)).rows.tolist() == [1.0] * 60 and wrong.rows.tolist() == [0.0] * 60
    values = Rows("val", (X,), X * 2, np.arange(60), LABELLED.preparations)
    score = judge(values, "regression")(lambda feeds: feeds)
    assert score.value == pytest.approx(-np.sqrt(-score.rows.mean())) and judge(PLAIN, "none")(perfect(8)).rows is None


def test_what_is_not_finite_is_the_worst_of_all():
    assert judge(LABELLED)(lambda feeds: (feeds[0] * np.nan,)) < judge(LABELLED)(lambda feeds: (-feeds[0],))
