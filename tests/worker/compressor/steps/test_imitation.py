"""The short distillation behind a refit."""

import json

import pytest

from tests.worker.compressor.networks import SPEC, artifact, compressed


def done(files, tmp_path, data, source="net", **recovery):
    prune = {"target": {"macs": "15%"}, "allocation": "score", "recovery": recovery}
    attempt, outcome = compressed(
        tmp_path, files / f"{source}.onnx", files / f"{data}.npz", SPEC | {"task": None, "steps": [{"prune": prune}]}
    )
    assert outcome["status"] == "succeeded", outcome
    stages = json.loads(artifact(attempt, "report.json").read_text())["stages"]
    return outcome, {stage["name"]: stage["metrics"] for stage in stages}


class TestImitate:
    @pytest.mark.parametrize("data", ["unlabelled", "labelled"])
    def test_it_brings_the_network_nearer_to_the_original(self, files, tmp_path, data):
        plain, _ = done(files, tmp_path / "plain", data)
        near, stages = done(files, tmp_path / "near", data, distill=120)
        errors = [outcome["result"]["compressed"]["output_error"] for outcome in (plain, near)]
        assert errors[1] < 0.98 * errors[0]
        assert stages["distill"]["features"] >= 4 and len(stages["distill"]["losses"]) > 1

    def test_network_without_a_free_batch_says_that_it_was_left(self, files, tmp_path):
        outcome, stages = done(files, tmp_path, "unlabelled", "fixed", distill=20)
        told = any("nothing was distilled" in warning for warning in outcome["warnings"])
        assert told is ("features" not in stages["distill"])
