"""Training steps in whole attempts."""

import json

import pytest

from tests.worker.compressor.networks import PRUNE, SPEC, artifact, compressed


class TestSparsify:
    @pytest.mark.parametrize("penalty", ["l1", "group_lasso", "bn_scale"])
    def test_a_stronger_penalty_leaves_smaller_norms(self, penalty, files, tmp_path):
        medians = []
        for number, strength in enumerate((1e-6, 0.1)):
            sparsity = {"penalty": penalty, "strength": strength, "epochs": 12}
            prune = {"prune": PRUNE["prune"] | {"sparsity_training": sparsity, "recovery": {"refit": True}}}
            folder = tmp_path / str(number)
            folder.mkdir()
            attempt, outcome = compressed(folder, files / "net.onnx", files / "labelled.npz", SPEC | {"steps": [prune]})
            assert outcome["status"] == "succeeded", outcome
            report = json.loads(artifact(attempt, "report.json").read_text())
            norms = next(stage["metrics"]["norms"] for stage in report["stages"] if stage["name"] == "sparsify")
            assert sum(norms["before"]["counts"]) == sum(norms["after"]["counts"]) > 0
            metrics = [e for e in attempt.events if e["kind"] == "metric" and e["name"] == "norm_p50"]
            assert [e["step"] for e in metrics] == [0, 1]
            medians.append(metrics[1]["value"])
        # The scale of a BatchNorm is as large as the spread of its values: so few steps move it little.
        assert medians[1] < (1 if penalty == "bn_scale" else 0.985) * medians[0]
