"""What a spec's steps come to, one thing after the other."""

from __future__ import annotations

import pytest

from app.spec.schema import Spec
from worker.compressor.schedule import expand, kept_share


def units(**prune):
    return expand(Spec.model_validate({"steps": [{"prune": {"target": {"macs": "40%"}} | prune}, {"distill": {}}]}))


class TestExpand:
    def test_one_cut_is_the_step_itself(self):
        found = units()
        assert [(u.kind, u.is_on_the_way) for u in found] == [("prune", False), ("distill", False)]

    @pytest.mark.parametrize("schedule", ["linear", "geometric", "cubic"])
    def test_cuts_come_nearer_with_training_between(self, schedule):
        found = units(iterations=4, schedule=schedule, epochs_between=2)
        assert [u.kind for u in found] == ["prune", "distill"] * 3 + ["prune", "distill"]
        shares = [u.options.target.macs.share for u in found if u.kind == "prune"]
        assert shares == sorted(shares, reverse=True) and shares[-1] == 0.4 and shares[0] < 1
        assert [u.is_on_the_way for u in found] == [True] * 6 + [False] * 2
        assert {u.options.epochs for u in found[1:6:2]} == {2}

    def test_counts_and_zeros_come_nearer_too(self):
        counts = [u.options.target.params.resolve(1000) for u in units(iterations=2, target={"params": 250})[:3:2]]
        assert counts == [500, 250]
        sparse = units(structure="weights", target={"sparsity": "90%"}, iterations=2, schedule="linear")
        assert [u.options.target.sparsity.share for u in sparse[:3:2]] == pytest.approx([0.45, 0.9])

    def test_a_short_distillation_follows_each_refit(self):
        found = units(iterations=2, epochs_between=0, recovery={"distill": 70})
        assert [(u.kind, u.imitating) for u in found] == [("prune", None), ("distill", 70)] * 2 + [("distill", None)]

    def test_without_recovery_there_is_no_short_distillation(self):
        assert [u.kind for u in units(recovery="none")] == ["prune", "distill"]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0.875, 0.75, 0.625, 0.5]),
        ("geometric", [2**-0.25, 2**-0.5, 2**-0.75, 0.5]),
        ("cubic", [0.7109375, 0.5625, 0.5078125, 0.5]),
    ],
)
def test_kept_share_follows_its_formula(schedule, shares):
    assert [kept_share(0.5, k / 4, schedule) for k in range(1, 5)] == pytest.approx(shares)
