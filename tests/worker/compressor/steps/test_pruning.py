"""Prune steps in whole attempts: what chooses, what goes, and how often."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.worker.compressor.networks import PRUNE, SPEC, artifact, compressed, export_fixed, mix_samples, trained
from worker.compressor.errors import GraphError
from worker.compressor.steps import cutting, limits, shortening
from worker.compressor.steps.trials import MOST_TRIALS

BY_SCORE = SPEC | {"steps": [{"prune": PRUNE["prune"] | {"allocation": "score"}}]}


class TestWhatIsRemoved:
    @pytest.mark.parametrize(
        ("criterion", "data"), [("reconstruction", "unlabelled"), ("taylor", "labelled"), ("bn_scale", "unlabelled")]
    )
    def test_criteria_that_look_at_samples_choose_the_channels(self, criterion, data, files, tmp_path):
        prune = {"prune": PRUNE["prune"] | {"criterion": criterion, "scope": "isomorphic"}}
        _, outcome = compressed(tmp_path, files / "net.onnx", files / f"{data}.npz", SPEC | {"steps": [prune]})
        assert outcome["status"] == "succeeded", outcome
        assert outcome["result"]["compressed"]["agreement"] > 0.8

    @pytest.mark.parametrize(
        ("prune", "share"),
        [
            ({"structure": "weights", "target": {"sparsity": "80%"}}, 0.8),
            (
                {
                    "structure": "weights",
                    "criterion": "reconstruction",
                    "scope": "layer",
                    "target": {"sparsity": "60%"},
                },
                0.6,
            ),
            ({"structure": "blocks", "block": [4, 2], "target": {"sparsity": "60%"}}, 0.6),
            ({"structure": "2:4", "criterion": "wanda"}, None),
        ],
    )
    def test_zeros_survive_refit_and_training(self, prune, share, files, tmp_path):
        spec = SPEC | {"steps": [{"prune": prune}, {"finetune": {"epochs": 2, "batch_size": 40}}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        result, report = outcome["result"], json.loads(artifact(attempt, "report.json").read_text())
        before, after = result["baseline"], result["compressed"]
        assert after["num_params"] == before["num_params"] and after["accuracy"] >= before["accuracy"] - 0.03
        made = {t.name: numpy_helper.to_array(t) for t in onnx.load(artifact(attempt, "model.onnx")).graph.initializer}
        for row in report["masks"]:
            assert (made[row["name"]] == 0).sum() == row["zeros"] > 0
        if share is not None:
            assert 0 <= 1 - after["nonzero_params"] / after["num_params"] - share < 0.01
            assert result["target"] == {"asked": {"sparsity": prune["target"]["sparsity"]}, "met": True}
        else:
            rows = [np.moveaxis(made[row["name"]], 1, -1).reshape(-1, 4) for row in report["masks"]]
            assert rows and all(((row != 0).sum(-1) <= 2).all() for row in rows)
        assert any("no faster" in warning for warning in outcome["warnings"])

    @pytest.mark.parametrize(
        ("data", "round_to", "last"),
        # By l1 in steps of four channels the second cut meets the target, and the third has nothing left to do.
        [("labelled", 1, ["prune", "recover", "distill"]), ("unlabelled", "auto", ["prune", "distill"])],
    )
    def test_cuts_and_training_in_turn_end_at_the_target(self, data, round_to, last, files, tmp_path):
        prune = {
            "target": {"macs": "30%"},
            "iterations": 3,
            "schedule": "cubic",
            "round_to": round_to,
            "criterion": "l1",
            "allocation": "score",
        }
        spec = SPEC | {"steps": [{"prune": prune | {"recovery": {"distill": 12}}}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / f"{data}.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        report = json.loads(artifact(attempt, "report.json").read_text())
        names = [stage["name"] for stage in report["stages"]]
        assert names[2:-2] == ["prune", "recover", "distill", "distill"] * 2 + last
        assert 0.25 < outcome["result"]["ratio"]["macs"] <= 0.3
        assert outcome["result"]["compressed"]["agreement"] > 0.85

    def test_a_floor_is_a_share_of_the_uploaded_widths_in_every_cut(self, files, tmp_path):
        def widths(share):
            prune = {"target": {"params": share}, "floor": 0.5, "round_to": 1, "iterations": 3, "criterion": "random"}
            spec = SPEC | {"steps": [{"prune": prune | {"epochs_between": 0}}]}
            attempt, outcome = compressed(tmp_path / share, files / "net.onnx", files / "unlabelled.npz", spec)
            rows = json.loads(artifact(attempt, "report.json").read_text())["layers"]
            return outcome, [
                (row["shape_before"][0], row["shape_after"][0]) for row in rows if row["kept_because"] is None
            ]

        outcome, found = widths("40%")
        assert outcome["status"] == "succeeded" and all(2 * after >= before for before, after in found)
        outcome, found = widths("10%")
        assert outcome["error"]["code"] == "target_unreachable"

    def test_without_data_the_cuts_follow_each_other(self, files, tmp_path):
        spec = SPEC | {"steps": [{"prune": {"target": {"macs": "50%"}, "iterations": 2}}]}
        _, outcome = compressed(tmp_path, files / "net.onnx", None, spec)
        assert outcome["result"]["ratio"]["macs"] <= 0.5
        assert any("nothing was trained between" in warning for warning in outcome["warnings"])

    @pytest.mark.parametrize(("prune", "is_tried"), [({}, True), ({"allocation": "score"}, False)])
    def test_widths_are_tried_where_the_spec_leaves_them_open(self, prune, is_tried, files, tmp_path):
        spec = SPEC | {"steps": [{"prune": {"target": {"macs": "30%"}} | prune}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "unlabelled.npz", spec)
        assert outcome["status"] == "succeeded" and outcome["result"]["ratio"]["macs"] <= 0.3, outcome
        stages = json.loads(artifact(attempt, "report.json").read_text())["stages"]
        metrics = next(stage["metrics"] for stage in stages if stage["name"] == "prune")
        assert (1 < metrics.get("tried", 0) <= MOST_TRIALS + 2) == is_tried

    def test_a_criterion_looks_at_whole_batches_where_the_file_fixes_them(self, files, tmp_path):
        export_fixed(trained(), tmp_path, "mixed", 3)
        mix_samples(tmp_path / "mixed.onnx")
        steps = [{"prune": PRUNE["prune"] | {"criterion": name}} for name in ("fisher", "wanda")]
        steps[1]["prune"]["target"] = {"macs": "30%"}
        _, outcome = compressed(tmp_path, tmp_path / "mixed.onnx", files / "labelled.npz", SPEC | {"steps": steps})
        assert outcome["status"] == "succeeded", outcome


class TestLayers:
    @pytest.mark.parametrize("criterion", ["l1", "activation"])
    def test_a_branch_goes_and_what_is_left_is_repaired(self, criterion, files, tmp_path):
        prune = {"structure": "layers", "criterion": criterion, "target": {"macs": "50%"}}
        spec = SPEC | {"steps": [{"prune": prune}], "outputs": ["onnx", "torchscript", "exported_program"]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        result, report = outcome["result"], json.loads(artifact(attempt, "report.json").read_text())
        assert result["ratio"]["macs"] < 0.2 and max(result["parity"].values()) < 1e-4
        assert report["exact"] and result["compressed"]["accuracy"] > result["baseline"]["accuracy"] - 0.1
        gone = {row["name"]: row for row in report["layers"] if row["shape_after"] is None}
        assert gone.keys() == {"/conv1/Conv", "/conv2/Conv"}
        assert all(row["params_after"] == row["macs_after"] == 0 < row["params_before"] for row in gone.values())
        assert all(row["kept_because"] is None for row in gone.values())
        assert "identity" in report["layers"][0]["kept_because"]
        assert all(row["axes"] == {"0": []} for row in report["weights"]) and len(report["weights"]) == 4
        made = onnx.load(artifact(attempt, "model.onnx"))
        assert {t.name for t in made.graph.initializer}.isdisjoint(row["name"] for row in report["weights"])
        assert [node.op_type for node in made.graph.node if node.op_type in ("Conv", "Add")] == ["Conv"]

    def test_a_branch_that_fails_its_proof_stays(self, files, tmp_path, monkeypatch):
        def doubtful(*given):
            raise GraphError("no proof")

        monkeypatch.setattr(shortening, "prove_shortened", doubtful)
        spec = SPEC | {"steps": [{"prune": {"structure": "layers", "target": {"macs": "50%"}}}]}
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "failed" and outcome["error"]["code"] == "target_unreachable"
        assert any("failed its proof" in warning for warning in outcome["warnings"])

    def test_a_fixed_batch_and_no_data_are_no_hindrance(self, files, tmp_path):
        spec = {"steps": [{"prune": {"structure": "layers", "target": {"params": "70%"}}}]}
        _, outcome = compressed(tmp_path / "a", files / "fixed.onnx", None, spec)
        assert outcome["status"] == "succeeded", outcome
        spec = SPEC | {"steps": [{"prune": spec["steps"][0]["prune"] | {"criterion": "activation"}}]}
        _, outcome = compressed(tmp_path / "b", files / "fixed.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded" and outcome["result"]["compressed"]["accuracy"] > 0.8


class TestPins:
    def test_what_keeps_a_large_share_is_a_warning(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "_DEAR", 1e-6)
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC)
        pin = json.loads(artifact(attempt, "report.json").read_text())["pins"][0]
        assert f"{pin['share']:.0%} of the MACs were not up for removal: {pin['why']}" in outcome["warnings"]


class TestRefusedGroups:
    def test_a_group_that_fails_its_proof_stays_whole(self, files, tmp_path, monkeypatch):
        prove = cutting.prove

        def doubtful(network, made, analysis, feeds):
            if any("fc1" in layer for group in made.kept for layer in analysis.groups[group].layers):
                raise GraphError("no proof")
            return prove(network, made, analysis, feeds)

        monkeypatch.setattr(cutting, "prove", doubtful)
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", BY_SCORE)
        assert outcome["status"] == "succeeded" and any(
            "failed its proof" in warning for warning in outcome["warnings"]
        )
        report = json.loads(artifact(attempt, "report.json").read_text())
        row = next(row for row in report["layers"] if "fc1" in row["name"])
        assert row["shape_before"] == row["shape_after"] and "would not compute" in row["kept_because"]

    def test_of_groups_that_cannot_be_cut_together_the_later_one_stays_whole(self, files, tmp_path, monkeypatch):
        cut = cutting.cut

        def doubtful(network, analysis, kept):
            layers = [layer for group in kept for layer in analysis.groups[group].layers]
            if len(kept) > 1 and any("fc1" in layer for layer in layers):
                raise GraphError("not both")
            return cut(network, analysis, kept)

        monkeypatch.setattr(cutting, "cut", doubtful)
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", BY_SCORE)
        assert outcome["status"] == "succeeded" and any("not both" in warning for warning in outcome["warnings"])
        report = json.loads(artifact(attempt, "report.json").read_text())
        row = next(row for row in report["layers"] if "fc1" in row["name"])
        assert row["shape_before"] == row["shape_after"]
