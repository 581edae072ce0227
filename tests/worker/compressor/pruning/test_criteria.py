"""Criteria against loops over every weight."""

import numpy as np
import pytest

from worker.compressor.errors import UnknownPlugin
from worker.compressor.graph.channels.analysis import Group, Slice
from worker.compressor.graph.channels.partition import partition
from worker.compressor.pruning.criteria import CRITERIA

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


@pytest.mark.parametrize(("name", "want"), [("l1", by_loops(1)), ("l2", np.sqrt(by_loops(2)))])
def test_scores_sum_over_all_that_read_a_unit(name, want):
    np.testing.assert_allclose(CRITERIA.get(name)().scores(GROUP, TENSORS, RNG), want, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_a_dead_unit_goes_first(name):
    tensors = TENSORS | {"made": TENSORS["made"] * np.array([1, 1, 0, 1], np.float32)[:, None, None, None]}
    scores = CRITERIA.get(name)().scores(GROUP, tensors, RNG)
    assert scores[2] == 0 and (np.delete(scores, 2) > 0).all()


def test_random_scores_follow_the_seed():
    one, same, other = (CRITERIA.get("random")().scores(GROUP, TENSORS, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any() and one.shape == (4,)


def test_an_unknown_criterion_names_the_known_ones():
    with pytest.raises(UnknownPlugin, match="l1, l2, random"):
        CRITERIA.get("l3")
