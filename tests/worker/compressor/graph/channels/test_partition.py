"""Partitions against every way to remove units of networks small enough to try them all."""

import itertools

import numpy as np
import pytest

from worker.compressor.graph.channels import partition as channels
from worker.compressor.graph.channels.partition import partition


def uneven(arrays, num):
    """The rows of each array of units must lose the same: rows of what has to be zero."""
    found = []
    for array in arrays:
        member = np.stack([np.bincount(row, minlength=num) for row in array])
        found.append(len(member) * member - member.sum(axis=0))
    return np.concatenate(found)


def single(num):
    return np.ones((1, num), np.int64)


def stem_and_branch():
    """A stem of 4 and a branch of 12, each made in 4 groups, and both one after the other read in 4."""
    stem, branch = np.arange(4).reshape(4, 1), np.arange(4, 16).reshape(4, 3)
    return [stem, branch, np.concatenate([stem.reshape(-1), branch.reshape(-1)]).reshape(4, 4)], 16


GRIDS = {
    "one layer": ([np.arange(6)[None]], 6),
    "two rows": ([np.arange(6).reshape(2, 3)], 6),
    "rows and columns": ([np.arange(9).reshape(3, 3), np.arange(9).reshape(3, 3).T], 9),
    "rows that halves cross": ([np.arange(12).reshape(3, 4), np.arange(12).reshape(2, 6)], 12),
    "stem and branch": stem_and_branch(),
}


class TestPartition:
    @pytest.mark.parametrize("name", GRIDS)
    def test_bundles_are_even_and_use_up_all(self, name):
        arrays, num = GRIDS[name]
        rows = uneven(arrays, num)
        found = partition(rows, single(num))
        assert all(not (found.uneven @ bundle.sizes).any() for bundle in found.bundles)
        assert (found.removable == found.sizes).all() and found.sizes.sum() == num
        members = [np.flatnonzero(found.blocks == block) for block in range(len(found.sizes))]
        assert all((rows[:, units] == rows[:, units[:1]]).all() for units in members)

    @pytest.mark.parametrize("name", GRIDS)
    def test_no_bundle_holds_a_smaller_even_set(self, name):
        arrays, num = GRIDS[name]
        found = partition(uneven(arrays, num), single(num))
        for bundle in found.bundles:
            for part in itertools.product(*(range(size + 1) for size in bundle.sizes.tolist())):
                if 0 < sum(part) < bundle.sizes.sum():
                    assert (found.uneven @ np.array(part)).any(), (bundle, part)

    def test_rows_of_unequal_length_keep_what_is_over(self):
        # three units in one row, two in the other: one of the three has to stay
        found = partition(np.array([[1, 1, 1, -1, -1], [-1, -1, -1, 1, 1]]), single(5))
        assert found.removable.sum() == 4 and [bundle.times for bundle in found.bundles] == [2]

    def test_a_row_that_can_lose_nothing_keeps_the_others(self):
        found = partition(np.array([[1, 1, 0], [-1, -1, 0]]), single(3))
        assert found.can_go.tolist() == [False, False, True]

    def test_units_of_different_layers_are_different_blocks(self):
        found = partition(np.zeros((0, 5), int), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]))
        assert sorted(found.sizes.tolist()) == [2, 3] and found.blocks[0] != found.blocks[4]

    def test_large_grids_have_bundles_of_one_unit_per_row(self):
        grid = np.arange(384).reshape(8, 48)
        found = partition(uneven([grid, np.arange(384).reshape(48, 8).T.reshape(-1, 48)], 384), single(384))
        assert {int(bundle.sizes.sum()) for bundle in found.bundles} == {8}

    def test_many_rows_are_walked_once_where_their_bundle_is_the_only_one(self, monkeypatch):
        """RegNetZ has 132 groups in a convolution; a walk from each of them took minutes."""
        walked = []
        original = channels._walk
        monkeypatch.setattr(channels, "_walk", lambda *given: walked.append(1) or original(*given))
        found = partition(uneven([np.arange(1056).reshape(132, 8)], 1056), single(1056))
        assert [(int(bundle.sizes.sum()), bundle.times) for bundle in found.bundles] == [(132, 8)]
        assert len(walked) == 1


class TestKeeping:
    def test_each_needed_set_of_blocks_keeps_a_unit(self):
        arrays, num = stem_and_branch()
        found = partition(uneven(arrays, num), single(num))
        is_stem = np.array([(np.flatnonzero(found.blocks == block) < 4).all() for block in range(len(found.sizes))])
        kept = found.keeping([is_stem, ~is_stem])
        left = kept.sizes - kept.removable
        assert left[is_stem].sum() > 0 and left[~is_stem].sum() > 0
        assert sum(bundle.least for bundle in kept.bundles) <= 2


class TestDraw:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
    @pytest.mark.parametrize("name", GRIDS)
    def test_what_is_kept_is_even_and_about_the_share(self, name, share):
        arrays, num = GRIDS[name]
        found = partition(uneven(arrays, num), single(num))
        kept = found.draw(share, np.random.default_rng(1))
        assert found.is_even(kept) and len(set(kept.tolist())) == len(kept)
        assert abs(len(kept) - share * num) <= max(bundle.sizes.sum() for bundle in found.bundles)
