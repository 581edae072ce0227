"""Losses against hand formulas in float64."""

import math

import numpy as np
import pytest
import torch

from app.spec.schema import Loss
from worker.compressor.distillation.losses import LOSSES
from worker.compressor.distillation.objective import Objective, OutputKind, Scores, output_kind
from worker.compressor.distillation.schedule import learning_rate
from worker.compressor.errors import CompressorError

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.standard_normal((6, 5)) * 3 for _ in range(2))
LABELS = RNG.integers(0, 5, 6)


def softmax(rows):
    e = np.exp(rows - rows.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl_by_hand(student, teacher, temperature):
    total = 0.0
    for s, t in zip(softmax(student / temperature), softmax(teacher / temperature), strict=True):
        total += sum(q * math.log(q / p) for q, p in zip(t, s, strict=True))
    return temperature**2 * total / len(student)


def tensors(*arrays):
    return tuple(torch.from_numpy(np.asarray(a)) for a in arrays)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_the_formula(temperature):
    found = LOSSES.get("kl")(temperature)(*tensors(STUDENT, TEACHER))
    assert float(found) == pytest.approx(kl_by_hand(STUDENT, TEACHER, temperature), rel=1e-9)


class TestObjective:
    def test_hard_and_soft_add_up_by_their_weights(self):
        kind = output_kind(TEACHER, "classification")
        objective = Objective(Loss(hard=0.3, soft=0.7, temperature=4), "classification", (kind,))
        want = 0.3 * -np.log(softmax(STUDENT))[np.arange(6), LABELS].mean() + 0.7 * kl_by_hand(STUDENT, TEACHER, 4)
        found = objective(tensors(STUDENT), tensors(TEACHER), torch.from_numpy(LABELS))
        assert float(found) == pytest.approx(want, rel=1e-5)

    def test_a_softmax_inside_the_network_makes_no_difference(self):
        kind = output_kind(softmax(TEACHER), "classification")
        assert kind.scores is Scores.PROBABILITIES
        objective = Objective(Loss(hard=0, soft=1, temperature=2), "classification", (kind,))
        found = objective(tensors(softmax(STUDENT)), tensors(softmax(TEACHER)), None)
        assert float(found) == pytest.approx(kl_by_hand(STUDENT, TEACHER, 2), rel=1e-3)

    def test_values_are_compared_in_units_of_their_spread(self):
        kind = output_kind(TEACHER, "regression")
        found = Objective(Loss(hard=0, soft=1), "regression", (kind,))(tensors(STUDENT), tensors(TEACHER), None)
        assert float(found) == pytest.approx(((STUDENT - TEACHER) ** 2).mean() / TEACHER.var(), rel=1e-4)

    def test_labels_alone_train_a_regression(self):
        kind = OutputKind(Scores.VALUES, 2.0)
        found = Objective(None, "regression", (kind,))(tensors(STUDENT[:, :1]), (), torch.from_numpy(TEACHER[:, 0]))
        assert float(found) == pytest.approx(((STUDENT[:, 0] - TEACHER[:, 0]) ** 2).mean() / 4, rel=1e-5)

    def test_without_labels_the_teacher_decides(self):
        objective = Objective(Loss(hard=0.0, soft=1.0), "none", (output_kind(TEACHER, "none"),))
        assert objective.needs_teacher and float(objective(tensors(TEACHER), tensors(TEACHER), None)) == pytest.approx(
            0, abs=1e-6
        )


class TestLearningRate:
    def test_it_warms_up_and_goes_down_to_a_hundredth(self):
        rates = [learning_rate(step, 1000, 1e-3, "cosine") for step in range(1000)]
        assert rates[0] == pytest.approx(1e-3 / 50) and max(rates) == pytest.approx(1e-3)
        assert rates[-1] == pytest.approx(1e-5, rel=0.02) and rates[50:] == sorted(rates[50:], reverse=True)

    def test_constant_stays(self):
        assert {learning_rate(step, 100, 0.1, "constant") for step in range(5, 100)} == {0.1}


class TestOutputKind:
    def test_whole_numbers_are_left_out(self):
        assert output_kind(np.zeros((4, 3), np.int64), "none") is None
        kinds = (None, output_kind(TEACHER, "none"))
        loss = Objective(Loss(hard=0.0, soft=1.0), "none", kinds)(
            tensors(LABELS, STUDENT), tensors(LABELS, TEACHER), None
        )
        assert float(loss) > 0

    def test_nothing_but_whole_numbers_cannot_be_trained(self):
        with pytest.raises(CompressorError) as caught:
            Objective(Loss(hard=0.0, soft=1.0), "none", (None,))
        assert caught.value.code == "unsupported_output"

    def test_maps_are_values(self):
        assert output_kind(RNG.standard_normal((2, 3, 4, 4)), "none").scores is Scores.VALUES
