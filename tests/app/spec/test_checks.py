from __future__ import annotations

from typing import Any

import pytest

from app.errors import Unprocessable
from app.spec.checks import DatasetFacts, ModelFacts, complete_spec
from app.spec.reading import read_spec
from app.spec.schema import Spec

PORT = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
MODEL = ModelFacts("onnx", [PORT])


def field(name: str, *shape: int, dtype: str = "uint8") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


IMAGES = [field("x_train", 100, 1, 8, 8), field("x_test", 20, 1, 8, 8)]
LABELS = [field("y_train", 100, dtype="int64"), field("y_test", 20, dtype="int64")]


def completed(spec: Any, *fields: dict[str, Any], model: ModelFacts = MODEL) -> Spec:
    return complete_spec(read_spec(spec), model, DatasetFacts(list(fields)) if fields else None)


def rejected(spec: Any, *fields: dict[str, Any], model: ModelFacts = MODEL) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        completed(spec, *fields, model=model)
    return caught.value


class TestCompleteSpec:
    def test_labels_make_it_classification(self) -> None:
        spec = completed(None, *IMAGES, *LABELS)
        assert (spec.task, spec.outputs) == ("classification", ["onnx"])

    def test_float_labels_make_it_regression(self) -> None:
        assert completed(None, field("x", 9, 1, 8, 8), field("y", 9, 3, dtype="float32")).task == "regression"

    def test_without_labels_there_is_no_hard_loss(self) -> None:
        spec = completed({"steps": [{"distill": {}}]}, *IMAGES)
        assert spec.task == "none"
        assert spec.steps[0].distill is not None
        assert (spec.steps[0].distill.loss.hard, spec.steps[0].distill.loss.soft) == (0, 0.7)

    @pytest.mark.parametrize(
        ("options", "criterion"),
        [
            ({}, "reconstruction"),
            ({"criterion": "l1"}, "l1"),
            ({"recovery": "none"}, "reconstruction"),
            ({"recovery": {"refit": False}}, "reconstruction"),
            ({"structure": "weights", "target": {"sparsity": "50%"}}, "l1"),
        ],
    )
    def test_channels_go_by_what_is_lost_with_them(self, options: dict[str, Any], criterion: str) -> None:
        step = {"prune": {"target": {"macs": "50%"}} | options}
        found = completed({"steps": [step]}, *IMAGES).steps[0].prune
        assert found is not None and found.criterion == criterion

    @pytest.mark.parametrize("refit", [True, False])
    def test_a_sensitivity_goes_by_the_criterion_of_the_cuts_to_come(self, refit: bool) -> None:
        found = completed({"steps": [{"sensitivity": {"refit": refit}}]}, *IMAGES).steps[0].sensitivity
        assert found is not None and found.criterion == "reconstruction"

    def test_without_data_channels_go_by_their_weights(self) -> None:
        found = completed({"steps": [{"prune": {"target": {"macs": "50%"}}}]}).steps[0].prune
        assert found is not None and found.criterion == "l1"

    def test_no_data_is_enough_to_prune(self) -> None:
        assert completed({"steps": [{"prune": {"target": {"macs": "50%"}}}]}).task == "none"

    @pytest.mark.parametrize(
        ("step", "pointer"),
        [
            ({"distill": {}}, "/spec/steps/0/distill"),
            ({"finetune": {}}, "/spec/steps/0/finetune"),
            ({"sensitivity": {}}, "/spec/steps/0/sensitivity"),
            (
                {"prune": {"target": {"macs": "50%"}, "allocation": "sensitivity"}},
                "/spec/steps/0/prune/allocation",
            ),
            ({"prune": {"target": {"macs": "50%"}, "recovery": {"refit": True}}}, "/spec/steps/0/prune/recovery"),
            (
                {"prune": {"target": {"macs": "50%"}, "iterations": 2, "epochs_between": 3}},
                "/spec/steps/0/prune/epochs_between",
            ),
            (
                {"prune": {"target": {"macs": "50%"}, "sparsity_training": {"epochs": 1}}},
                "/spec/steps/0/prune/sparsity_training",
            ),
            ({"prune": {"target": {"macs": "50%"}, "criterion": "taylor"}}, "/spec/steps/0/prune/criterion"),
        ],
    )
    def test_what_asks_for_data_needs_data(self, step: dict[str, Any], pointer: str) -> None:
        error = rejected({"steps": [step]})
        assert (error.code, error.errors[0].pointer) == ("data_needed", pointer)

    @pytest.mark.parametrize(
        "step", [{"finetune": {}}, {"distill": {"loss": {"hard": 0.5}}}, {"sensitivity": {"metric": "accuracy"}}]
    )
    def test_what_asks_for_labels_needs_labels(self, step: dict[str, Any]) -> None:
        assert rejected({"steps": [step]}, *IMAGES).code == "labels_needed"

    def test_a_metric_of_another_task_is_told(self) -> None:
        error = rejected({"steps": [{"sensitivity": {"metric": "rmse"}}]}, *IMAGES, *LABELS)
        assert (error.code, error.errors[0].pointer) == ("metric_mismatch", "/spec/steps/0/sensitivity/metric")
        assert completed({"steps": [{"sensitivity": {"metric": "divergence"}}]}, *IMAGES).makes_network is False

    @pytest.mark.parametrize(
        "fields",
        [
            [field("x", 50, 3, 9, 9)],
            [field("x", 50, 64)],
            [field("picture", 50, 1, 8, 8)],
            [field("x", 50, 1, 8, 8), field("y", 49, dtype="int64")],
            [field("y", 50, dtype="int64")],
        ],
    )
    def test_data_that_do_not_fit_are_told(self, fields: list[dict[str, Any]]) -> None:
        assert rejected(None, *fields).code == "data_mismatch"

    def test_a_signature_comes_from_the_data_where_the_file_has_none(self) -> None:
        spec = completed({"preprocess": {}}, *IMAGES, model=ModelFacts("torchscript", None))
        assert spec.inputs is not None
        assert spec.inputs[0].model_dump() == {"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
        spec = completed(None, *IMAGES, model=ModelFacts("torchscript", None))
        assert spec.inputs is not None
        assert spec.inputs[0].dtype == "uint8"

    def test_a_fixed_argument_needs_no_array(self) -> None:
        rows = [{"name": "x", "shape": ["batch", 1, 8, 8]}, {"name": "rate", "value": 16000}]
        spec = completed({"inputs": rows, "preprocess": {}}, *IMAGES, model=ModelFacts("torchscript", None))
        assert [row.name for row in spec.tensors] == ["x"]
        assert spec.as_json()["inputs"][1] == {"name": "rate", "value": 16000}

    def test_without_signature_and_data_one_is_asked_for(self) -> None:
        assert rejected(None, model=ModelFacts("torchscript", None)).code == "signature_needed"

    def test_a_file_with_stranger_inputs_than_a_spec_may_have_is_no_mistake_of_ours(self) -> None:
        model = ModelFacts("onnx", [{"name": "n" * 300, "dtype": "float32", "shape": ["batch", 4]}])
        assert rejected({}, model=model).errors[0].pointer == "/spec/inputs/0/name"


class TestBatches:
    FIXED = ModelFacts("onnx", [PORT | {"shape": [4, 1, 8, 8]}])

    def asking(self, batch: int | None) -> dict[str, Any]:
        asked = "50%" if batch is None else {"value": "50%", "batch": batch}
        return {"steps": [{"prune": {"target": {"latency_ms": asked}}}]}

    @pytest.mark.parametrize(("batch", "model"), [(4, FIXED), (None, FIXED), (7, MODEL)])
    def test_what_the_network_takes_can_be_timed(self, batch: int | None, model: ModelFacts) -> None:
        completed(self.asking(batch), model=model)

    def test_a_latency_at_rows_that_it_does_not_take_is_refused(self) -> None:
        (error,) = rejected(self.asking(3), model=self.FIXED).errors
        assert (error.code, error.pointer) == ("batch_mismatch", "/spec/steps/0/prune/target/latency_ms")
