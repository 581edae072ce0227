"""Figures in pieces against figures at once."""

import numpy as np
import pytest

from worker.compressor.errors import DataError
from worker.compressor.evaluation.tally import Tally

RNG = np.random.default_rng(0)
BEFORE = RNG.standard_normal((100, 7)).astype(np.float32)
AFTER = (BEFORE + 0.5 * RNG.standard_normal((100, 7))).astype(np.float32)
LABELS = RNG.integers(0, 7, 100)


def tallied(before, after, labels=None, task="classification", size=13):
    tally = Tally(task)
    for at in range(0, len(before), size):
        tally.add(before[at : at + size], after[at : at + size], None if labels is None else labels[at : at + size])
    return tally


def test_figures_are_those_of_all_rows_at_once():
    figures = tallied(BEFORE, AFTER, LABELS).figures()
    assert figures["accuracy"] == (AFTER.argmax(-1) == LABELS).mean()
    assert figures["agreement"] == (AFTER.argmax(-1) == BEFORE.argmax(-1)).mean()
    want = np.sqrt(((AFTER - BEFORE) ** 2).mean()) / BEFORE.std()
    assert figures["output_error"] == pytest.approx(want, rel=1e-5)


def test_agreement_is_over_the_last_axis_of_maps():
    before, after = RNG.standard_normal((2, 10, 4, 6))
    assert tallied(before, after).figures()["agreement"] == (before.argmax(-1) == after.argmax(-1)).mean()


def test_one_element_has_no_winner():
    figures = tallied(BEFORE[:, :1], AFTER[:, :1], BEFORE[:, 0] + 1, "regression").figures()
    assert figures["agreement"] is None
    assert figures["rmse"] == pytest.approx(np.sqrt(((AFTER[:, 0] - BEFORE[:, 0] - 1) ** 2).mean()), rel=1e-5)


def test_labels_beyond_the_outputs_are_a_mismatch():
    with pytest.raises(DataError, match="class 7") as caught:
        tallied(BEFORE, AFTER, np.full(100, 7))
    assert caught.value.code == "label_mismatch"


class TestCollapsed:
    def test_a_sound_output_has_not(self):
        assert tallied(BEFORE, AFTER).collapsed() is None

    @pytest.mark.parametrize(("after", "why"), [
        (np.where(np.arange(7) == 2, 9.0, AFTER), "one class"),
        (np.ones_like(AFTER), "same for every sample"),
        (np.full_like(AFTER, np.nan), "not finite"),
    ])  # fmt: skip
    def test_a_collapsed_one_has(self, after, why):
        assert why in tallied(BEFORE, after).collapsed()

    def test_what_was_so_before_is_no_collapse(self):
        assert tallied(np.ones_like(BEFORE), np.ones_like(BEFORE)).collapsed() is None
