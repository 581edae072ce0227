from __future__ import annotations

from typing import Any

import pytest

from app.errors import AppError, BadRequest, Unprocessable
from app.spec.reading import MAX_SPEC_BYTES, parse_yaml, read_spec
from app.spec.schema import Spec
from app.spec.targets import LatencyTarget, Target

PRUNE = {"target": {"macs": "50%"}}


def prune(**options: Any) -> dict[str, Any]:
    return {"steps": [{"prune": PRUNE | options}]}


def rejected(value: Any) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        read_spec(value)
    return caught.value


class TestReadSpec:
    def test_nothing_is_the_default_job(self) -> None:
        spec = read_spec(None)
        assert spec.steps[0].prune is not None
        assert spec.steps[0].prune.target.macs == Target(share=0.5)

    def test_what_is_given_back_reads_as_the_same_spec(self) -> None:
        steps = [{"prune": PRUNE | {"recovery": "none", "round_to": 4}}, {"distill": {"epochs": 2}}, {"finetune": {}}]
        spec = read_spec(
            {"version": 1, "preprocess": {"scale": 1 / 16}, "steps": steps, "outputs": ["onnx"], "seed": 3}
        )
        assert read_spec(spec.as_json()) == spec
        assert [list(step) for step in spec.as_json()["steps"]] == [["prune"], ["distill"], ["finetune"]]

    def test_tiles_are_four_by_four_where_nothing_is_said(self) -> None:
        spec = read_spec(prune(structure="blocks", target={"sparsity": "50%"}))
        assert spec.steps[0].prune is not None and spec.steps[0].prune.block == [4, 4]
        assert read_spec(spec.as_json()) == spec
        assert read_spec(None).as_json()["steps"][0]["prune"]["block"] is None

    @pytest.mark.parametrize(
        ("value", "pointer", "code"),
        [
            ({"stepz": []}, "/spec/stepz", "unknown_field"),
            ({"steps": [{"prune": PRUNE | {"criterium": "l1"}}]}, "/spec/steps/0/prune/criterium", "unknown_field"),
            ({"steps": [{"prun": PRUNE}]}, "/spec/steps/0/prun", "unknown_field"),
            ({"steps": [{"prune": PRUNE | {"criterion": "l3"}}]}, "/spec/steps/0/prune/criterion", "unknown_value"),
            ({"steps": [{"prune": {"target": {"macs": "150%"}}}]}, "/spec/steps/0/prune/target/macs", "out_of_range"),
            ({"steps": [{"prune": {"target": {"macs": "0%"}}}]}, "/spec/steps/0/prune/target/macs", "out_of_range"),
            ({"steps": [{"prune": {"target": {"macs": 0}}}]}, "/spec/steps/0/prune/target/macs", "out_of_range"),
            ({"steps": [{"prune": {"target": {"macs": 0.5}}}]}, "/spec/steps/0/prune/target/macs", "wrong_type"),
            ({"steps": [{"prune": {"target": {"macs": "half"}}}]}, "/spec/steps/0/prune/target/macs", "invalid_target"),
            ({"steps": [{"prune": {"target": {}}}]}, "/spec/steps/0/prune/target", "target_needed"),
            (prune(structure="weights"), "/spec/steps/0/prune/target", "target_mismatch"),
            (prune(target={"sparsity": "50%"}), "/spec/steps/0/prune/target", "target_mismatch"),
            (prune(target={"sparsity": "50%", "macs": "50%"}), "/spec/steps/0/prune/target", "target_mismatch"),
            (prune(structure="2:4"), "/spec/steps/0/prune/target", "target_mismatch"),
            (prune(structure="2:4", target=None, iterations=2), "/spec/steps/0/prune/iterations", "schedule_mismatch"),
            (prune(block=[4, 4]), "/spec/steps/0/prune/block", "block_mismatch"),
            (prune(floor=1), "/spec/steps/0/prune/floor", "out_of_range"),
            (prune(structure="layers", floor=0.1), "/spec/steps/0/prune/floor", "floor_mismatch"),
            (prune(structure="2:4", target=None, floor=0.1), "/spec/steps/0/prune/floor", "floor_mismatch"),
            (prune(structure="layers", target={"sparsity": "50%"}), "/spec/steps/0/prune/target", "target_mismatch"),
            (prune(structure="layers", scope="layer"), "/spec/steps/0/prune/scope", "scope_mismatch"),
            (prune(structure="layers", scope="isomorphic"), "/spec/steps/0/prune/scope", "scope_mismatch"),
            (prune(structure="layers", criterion="lamp"), "/spec/steps/0/prune/criterion", "criterion_mismatch"),
            (prune(structure="layers", block=[4, 4]), "/spec/steps/0/prune/block", "block_mismatch"),
            (prune(structure="blocks"), "/spec/steps/0/prune/target", "target_mismatch"),
            (
                prune(structure="blocks", target={"sparsity": "50%"}, block=[4]),
                "/spec/steps/0/prune/block",
                "too_short",
            ),
            (
                prune(structure="blocks", target={"sparsity": "50%"}, block=[4, 0]),
                "/spec/steps/0/prune/block/1",
                "out_of_range",
            ),
            (prune(structure="4:2"), "/spec/steps/0/prune/structure", "out_of_range"),
            (prune(structure="n:m"), "/spec/steps/0/prune/structure", "unknown_value"),
            (prune(target={"sparsity": 5}), "/spec/steps/0/prune/target/sparsity", "invalid_target"),
            (
                prune(structure="2:4", target=None, criterion="fpgm"),
                "/spec/steps/0/prune/criterion",
                "criterion_mismatch",
            ),
            (prune(structure="2:4", target=None, scope="isomorphic"), "/spec/steps/0/prune/scope", "scope_mismatch"),
            (prune(scope="layer", allocation="sensitivity"), "/spec/steps/0/prune/allocation", "scope_mismatch"),
            (
                prune(structure="weights", target={"sparsity": "50%"}, allocation="sensitivity"),
                "/spec/steps/0/prune/allocation",
                "scope_mismatch",
            ),
            (
                {"steps": [{"sensitivity": {"ratios": [0.5, 0.5]}}]},
                "/spec/steps/0/sensitivity/ratios",
                "not_rising",
            ),
            ({"steps": [{"sensitivity": {"ratios": [1.0]}}]}, "/spec/steps/0/sensitivity/ratios/0", "out_of_range"),
            (
                {"steps": [{"sensitivity": {"tradeoff": ["120%"]}}]},
                "/spec/steps/0/sensitivity/tradeoff/0",
                "out_of_range",
            ),
            ({"steps": [{"sensitivity": {"metric": "f1"}}]}, "/spec/steps/0/sensitivity/metric", "unknown_value"),
            ({"steps": [{"prune": {}}]}, "/spec/steps/0/prune/target", "field_required"),
            ({"steps": [{"prune": PRUNE | {"round_to": True}}]}, "/spec/steps/0/prune/round_to", "unknown_value"),
            (
                {"steps": [{"prune": PRUNE | {"recovery": {"samples": 0}}}]},
                "/spec/steps/0/prune/recovery/samples",
                "out_of_range",
            ),
            ({"steps": [{"distill": {"epochs": -1}}]}, "/spec/steps/0/distill/epochs", "out_of_range"),
            ({"steps": [{"distill": {"epochs": True}}]}, "/spec/steps/0/distill/epochs", "wrong_type"),
            ({"steps": [{"distill": {"epochs": "3"}}]}, "/spec/steps/0/distill/epochs", "wrong_type"),
            (
                {"steps": [{"distill": {"loss": {"temperature": 0}}}]},
                "/spec/steps/0/distill/loss/temperature",
                "out_of_range",
            ),
            ({"steps": [{"distill": {"loss": {"hard": 0, "soft": 0}}}]}, "/spec/steps/0/distill/loss", "out_of_range"),
            ({"steps": [{"distill": {"batch_size": 10**9}}]}, "/spec/steps/0/distill/batch_size", "out_of_range"),
            ({"steps": [{}]}, "/spec/steps/0", "invalid_step"),
            ({"steps": [{"prune": PRUNE, "finetune": {}}]}, "/spec/steps/0", "invalid_step"),
            ({"steps": []}, "/spec/steps", "too_short"),
            ({"steps": [{"finetune": {}}] * 1000}, "/spec/steps", "too_long"),
            ({"inputs": [{"name": "x", "shape": [0]}]}, "/spec/inputs/0/shape/0", "invalid_input_shape"),
            ({"inputs": [{"name": "x", "shape": [2**40]}]}, "/spec/inputs/0/shape/0", "invalid_input_shape"),
            ({"inputs": [{"name": "x", "shape": [1] * 100}]}, "/spec/inputs/0/shape", "too_long"),
            ({"preprocess": {"scale": float("inf")}}, "/spec/preprocess/scale", "non_finite_number"),
            ({"preprocess": {"std": [0.0]}}, "/spec/preprocess/std/0", "out_of_range"),
            ({"outputs": ["onnx", "onnx"]}, "/spec", "duplicate_output"),
            ({"version": 2}, "/spec/version", "unknown_value"),
            ({"version": True}, "/spec/version", "wrong_type"),
            ({"seed": "x"}, "/spec/seed", "wrong_type"),
            ("text", "/spec", "wrong_type"),
        ],
    )
    def test_a_wrong_field_is_pointed_at(self, value: Any, pointer: str, code: str) -> None:
        error = rejected(value)
        assert (error.errors[0].pointer, error.errors[0].code, error.code) == (pointer, code, code)

    def test_a_typo_is_answered_with_the_nearest_key(self) -> None:
        assert "'criterion'" in rejected({"steps": [{"prune": PRUNE | {"criterium": "l1"}}]}).detail

    def test_several_wrong_fields_have_one_error_each(self) -> None:
        error = rejected({"seed": "x", "stepz": [], "steps": [{"distill": {"epochs": 0}}]})
        assert {e.pointer for e in error.errors} == {"/spec/seed", "/spec/stepz", "/spec/steps/0/distill/epochs"}
        assert error.code == "invalid_request"

    def test_the_input_is_never_echoed(self) -> None:
        assert "secret" not in str([e.as_dict() for e in rejected({"seed": "secret", "version": "secret"}).errors])


class TestParseYaml:
    def test_numbers_read_as_people_mean_them(self) -> None:
        assert parse_yaml(b"a: 1e-3\nb: 1.0e-4\nc: 50%\nd: 2020-01-01") == {
            "a": 1e-3,
            "b": 1e-4,
            "c": "50%",
            "d": "2020-01-01",
        }

    def test_json_is_yaml(self) -> None:
        assert (
            parse_yaml(b'{"version": 1, "steps": [{"finetune": {"epochs": 2}}]}')["steps"][0]["finetune"]["epochs"] == 2
        )

    @pytest.mark.parametrize(
        "blob",
        [
            b"a: &x [1]\nb: *x",
            b"a: 1\na: 2",
            b"\xff\xfe",
            b"a: [",
            b"!!python/object/apply:os.system [id]",
            b"[" * 5000,
            b"a: " + b"9" * 5000,
            b"{? [1]: 2}",
        ],
    )
    def test_what_is_not_plain_data_is_refused(self, blob: bytes) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_yaml(blob)
        assert caught.value.code == "invalid_yaml"

    def test_a_huge_document_is_not_parsed(self) -> None:
        with pytest.raises(AppError) as caught:
            parse_yaml(b" " * (MAX_SPEC_BYTES + 1))
        assert caught.value.code == "body_too_large"


class TestTarget:
    def test_a_share_is_a_ceiling(self) -> None:
        target = Target(share=0.5)
        assert (target.resolve(1001), target.asked) == (500, "50%")

    def test_a_count_stands_for_itself(self) -> None:
        assert Target(count=7).resolve(1001) == 7

    def test_the_spec_gives_it_back_as_it_came(self) -> None:
        spec = Spec.model_validate({"steps": [{"prune": {"target": {"macs": "33.3%", "params": 12}}}]})
        target = spec.as_json()["steps"][0]["prune"]["target"]
        assert {name: asked for name, asked in target.items() if asked is not None} == {"macs": "33.3%", "params": 12}

    @pytest.mark.parametrize("asked", ["50%", 12, 1.5, {"value": "50%", "batch": 8}, {"value": 2, "batch": 1}])
    def test_a_latency_comes_back_as_it_came(self, asked: Any) -> None:
        spec = Spec.model_validate({"steps": [{"prune": {"target": {"latency_ms": asked}}}]})
        plain = spec.as_json()
        assert plain["steps"][0]["prune"]["target"]["latency_ms"] == asked
        assert Spec.model_validate(plain).as_json() == plain

    @pytest.mark.parametrize(
        ("asked", "code"),
        [
            ("50", "invalid_target"),
            ("0%", "out_of_range"),
            (0, "out_of_range"),
            (True, "wrong_type"),
            ([], "wrong_type"),
            ({"batch": 2}, "field_required"),
            ({"value": 1, "batch": 0}, "out_of_range"),
            ({"value": 1, "batch": 1.0}, "wrong_type"),
            ({"value": 1, "rows": 2}, "unknown_field"),
        ],
    )
    def test_a_latency_that_is_none_is_refused(self, asked: Any, code: str) -> None:
        (error,) = rejected({"steps": [{"prune": {"target": {"latency_ms": asked}}}]}).errors
        assert (error.code, error.pointer) == (code, "/spec/steps/0/prune/target/latency_ms")

    @pytest.mark.parametrize("structure", ["weights", "blocks", "layers", "2:4"])
    @pytest.mark.parametrize("name", ["size", "latency_ms"])
    def test_only_channels_change_files_and_times(self, structure: str, name: str) -> None:
        (error,) = rejected({"steps": [{"prune": {"structure": structure, "target": {name: "50%"}}}]}).errors
        assert error.code == "target_mismatch"

    def test_all_targets_of_channels_go_together(self) -> None:
        target = {"macs": "50%", "params": "60%", "size": "70%", "latency_ms": 3}
        assert read_spec({"steps": [{"prune": {"target": target}}]}).steps[0].prune.target.given == target.keys()

    def test_on_the_way_a_latency_keeps_its_batch(self) -> None:
        target = LatencyTarget(share=0.25, batch=8).eased(lambda share: share**0.5)
        assert (target.limit(10.0), target.batch) == (5.0, 8)
        assert LatencyTarget(count=2.5).eased(lambda share: share**0.5).limit(10.0) == 5.0
