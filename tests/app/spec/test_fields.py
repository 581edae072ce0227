from __future__ import annotations

import pytest

from app.spec.fields import FieldsMismatch, assign_roles, base_names, count_splits


class TestAssignRoles:
    def test_suffixes_name_the_splits(self) -> None:
        roles = assign_roles(["x_train", "y_train", "x_test", "y_test"], ["image"])
        assert roles.inputs == {"image": {"train": "x_train", "test": "x_test"}}
        assert roles.labels == {"train": "y_train", "test": "y_test"}
        assert roles.splits == ("train", "test")

    def test_the_name_of_an_input_goes_before_the_neutral_one(self) -> None:
        assert assign_roles(["x", "image", "labels"], ["image"]).inputs == {"image": {"all": "image"}}

    def test_an_input_may_end_like_a_split(self) -> None:
        assert assign_roles(["left_test", "right"], ["left_test", "right"]).inputs["left_test"] == {"all": "left_test"}

    def test_two_inputs_need_their_names(self) -> None:
        with pytest.raises(FieldsMismatch, match="'b'"):
            assign_roles(["a", "x"], ["a", "b"])

    def test_inputs_with_other_splits_are_refused(self) -> None:
        with pytest.raises(FieldsMismatch, match="splits"):
            assign_roles(["a_train", "b"], ["a", "b"])

    def test_an_input_that_is_called_y_is_not_a_label(self) -> None:
        roles = assign_roles(["x", "y"], ["x", "y"])
        assert roles.labels == {}

    def test_without_names_every_array_is_an_input_by_position(self) -> None:
        assert list(assign_roles(["b_train", "a_train", "y_train"], None).inputs) == ["b", "a"]
        assert base_names(["b_train", "a_train", "y_train", "b_test"]) == ["b", "a"]


class TestCountSplits:
    def test_unsplit_rows_count_as_train(self) -> None:
        assert count_splits([{"name": "x", "shape": [7, 2]}, {"name": "y", "shape": [7]}]) == {
            "train": 7,
            "val": 0,
            "test": 0,
        }
