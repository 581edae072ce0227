"""Criteria against loops over every weight."""

import numpy as np
import pytest

from worker.compressor.errors import DataNeeded, UnknownPlugin
from worker.compressor.graph.channels.analysis import Group, Slice
from worker.compressor.graph.channels.partition import partition
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.evidence import Evidence

RNG = np.random.default_rng(0)
TENSORS = {
    "made": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
    "bias": RNG.standard_normal(4).astype(np.float32),
    "read": RNG.standard_normal((10, 8)).astype(np.float32),  # two positions per unit, as after a flatten
    "grouped": RNG.standard_normal((6, 2, 3, 3)).astype(np.float32),  # two parts that read different units
}
UNITS = {"read": np.repeat(np.arange(4), 2), "grouped": np.array([[0, 1], [2, -1]])}
GROUP = Group(
    0,
    partition(np.zeros((0, 4), int), np.ones((1, 4), int)),
    (
        Slice("made", "a", 0, np.arange(4), "produces"),
        Slice("bias", "a", 0, np.arange(4), "produces"),
        Slice("read", "b", 1, UNITS["read"], "consumes"),
        Slice("grouped", "c", 1, UNITS["grouped"], "consumes"),
        Slice("made", "d", 0, np.arange(4), "follows"),
    ),
    ("a",),
)


def by_loops(power, tensors=TENSORS):
    read, grouped, made = np.zeros(4), np.zeros(4), np.zeros(4)
    for unit in range(4):
        for index, value in np.ndenumerate(tensors["read"]):
            read[unit] += abs(float(value)) ** power * (UNITS["read"][index[1]] == unit)
        for index, value in np.ndenumerate(tensors["grouped"]):
            grouped[unit] += abs(float(value)) ** power * (UNITS["grouped"][index[0] // 3][index[1]] == unit)
        for index, value in np.ndenumerate(tensors["made"]):
            made[unit] += abs(float(value)) ** power * (index[0] == unit)
    return (read / read.mean() + grouped / grouped.mean()) * np.minimum(made / made.mean() / 0.05, 1)


class FakeNetwork:
    """What criteria that look at weights alone ask of a network."""

    def __init__(self, tensors):
        self.tensors, self.nodes = tensors, []


def scores(name, tensors=TENSORS, group=GROUP, combine="readers"):
    evidence = Evidence(FakeNetwork(tensors), [group], combine)
    return CRITERIA.get(name)().scores(group, evidence, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("l1", by_loops(1)),
        ("l2", np.sqrt(by_loops(2))),
        ("l2_largest", np.sqrt(by_loops(2)).max() - np.sqrt(by_loops(2))),
    ],
)
def test_scores_sum_over_all_that_read_a_unit(name, want):
    np.testing.assert_allclose(scores(name), want, rtol=1e-6)


def test_makers_alone_or_both_can_be_asked_for():
    made = np.abs(TENSORS["made"]).sum((1, 2, 3), dtype=float)
    np.testing.assert_allclose(scores("l1", combine="makers"), made / made.mean(), rtol=1e-6)
    np.testing.assert_allclose(scores("l1", combine="all"), by_loops(1) + made / made.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp"])
def test_a_dead_unit_goes_first(name):
    tensors = TENSORS | {"made": TENSORS["made"] * np.array([1, 1, 0, 1], np.float32)[:, None, None, None]}
    found = scores(name, tensors)
    assert found[2] == 0 and (np.delete(found, 2) > 0).all()


def test_lamp_divides_by_all_that_are_as_large():
    squares = by_loops(2)
    want = [square / sum(other for other in squares if other >= square) for square in squares]
    np.testing.assert_allclose(scores("lamp"), want, rtol=1e-6)


def test_fpgm_sums_the_distances_to_all_others():
    vectors = [TENSORS["read"][:, UNITS["read"] == unit].reshape(-1) for unit in range(4)]
    apart = np.array([sum(np.linalg.norm(a - b) for b in vectors) for a in vectors])
    pair = np.linalg.norm(TENSORS["grouped"][:3, 0] - TENSORS["grouped"][:3, 1])
    want = apart / apart.mean() + np.array([1, 1, 0, 0]) * (pair > 0)
    np.testing.assert_allclose(scores("fpgm"), want, rtol=1e-6)


class TestRandom:
    def test_scores_follow_the_seed(self):
        evidence = Evidence(FakeNetwork(TENSORS), [GROUP])
        one, same, other = (
            CRITERIA.get("random")().scores(GROUP, evidence, np.random.default_rng(s)) for s in (1, 1, 2)
        )
        assert (one == same).all() and (one != other).any() and one.shape == (4,)


@pytest.mark.parametrize("name", sorted(name for name in CRITERIA if "data" in CRITERIA.get(name).needs))
def test_what_looks_at_samples_says_so_without_any(name):
    with pytest.raises(DataNeeded):
        scores(name)


def test_an_unknown_criterion_names_the_known_ones():
    with pytest.raises(UnknownPlugin, match="l1, l2"):
        CRITERIA.get("l3")
