"""Whole attempts on small networks: files in, proven files out, and every end that is no success."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.worker.compressor.networks import (
    PREPROCESS,
    PRUNE,
    SPEC,
    Attempt,
    artifact,
    compressed,
    export_fixed,
    inspected,
    mix_samples,
    pictures,
    sha256,
    trained,
)
from worker.compressor.errors import RunAborted

LAYERS = {"prune": {"structure": "layers", "target": {"macs": "50%"}}}


def prepared(x):
    return ((x.astype(np.float32) * np.float32(1 / 255) - np.float32(0.4)) / np.float32(0.25)).astype(np.float32)


def run_onnx(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


class TestSuccess:
    def test_every_figure_is_that_of_the_files(self, files, tmp_path):
        spec = SPEC | {
            "outputs": ["onnx", "torchscript", "exported_program"],
            "steps": [PRUNE, {"distill": {"epochs": 2, "batch_size": 40}}],
        }
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        (xt, yt), result = pictures(120, 2), outcome["result"]
        before, after = (run_onnx(p, prepared(xt)) for p in (files / "net.onnx", artifact(attempt, "model.onnx")))
        twin = torch.jit.load(str(artifact(attempt, "model.pt")))(torch.from_numpy(prepared(xt)))
        twin = twin[0] if isinstance(twin, tuple) else twin
        np.testing.assert_allclose(twin.numpy(), after, rtol=1e-4, atol=1e-4)
        program = torch.export.load(artifact(attempt, "model.pt2")).module()
        np.testing.assert_allclose(program(torch.from_numpy(prepared(xt))).numpy(), after, rtol=1e-4, atol=1e-4)
        assert result["baseline"]["accuracy"] == (before.argmax(-1) == yt).mean()
        assert (
            result["compressed"]["accuracy"] == (after.argmax(-1) == yt).mean() >= result["baseline"]["accuracy"] - 0.03
        )
        assert result["compressed"]["agreement"] == (before.argmax(-1) == after.argmax(-1)).mean()
        assert 0.4 < result["ratio"]["macs"] <= 0.5 and result["target"] == {"asked": {"macs": "50%"}, "met": True}
        assert result["compressed"]["size_bytes"]["onnx"] == artifact(attempt, "model.onnx").stat().st_size
        assert set(result["baseline"]["size_bytes"]) == {"onnx"} and result["ratio"]["size_bytes"].keys() == {"onnx"}
        assert [row["batch"] for row in result["compressed"]["latency_ms"]] == [1, 64]
        assert all(result["verified"].values()) and max(result["parity"].values()) < 1e-4

    def test_report_and_manifest_say_how_it_came_about(self, files, tmp_path):
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC)
        report, manifest = (
            json.loads(artifact(attempt, f"{name}.json").read_text()) for name in ("report", "manifest")
        )
        assert report["result"] == outcome["result"] and report["source_sha256"] == sha256(files / "net.onnx")
        assert [s["name"] for s in report["stages"]] == [
            "preparing",
            "baseline",
            "prune",
            "recover",
            "verify",
            "latency",
        ]
        assert report["exact"] is True and report["inexact"] == [] and report["weights"]
        assert sum(row["macs_after"] for row in report["layers"]) == outcome["result"]["compressed"]["macs"]
        assert report["layers"][-1]["kept_because"]
        assert [pin["layers"] for pin in report["pins"]] == [[report["layers"][-1]["name"]]]
        hashes = {row["name"]: row["sha256"] for row in manifest["artifacts"]}
        assert hashes["model.onnx"] == sha256(artifact(attempt, "model.onnx"))
        assert manifest["preprocess"] == PREPROCESS | {"layout": "NCHW"} and manifest["seed"] == 0
        assert {row["name"] for row in outcome["artifacts"]} == {
            "model.onnx",
            "weights.safetensors",
            "report.json",
            "manifest.json",
        }

    def test_events_tell_progress_and_metrics(self, files, tmp_path):
        attempt, _ = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC)
        progress = [event["progress"] for event in attempt.events if event["kind"] == "progress"]
        assert progress == sorted(progress) and progress[0] >= 0 and progress[-1] <= 1
        metrics = [event for event in attempt.events if event["kind"] == "metric"]
        assert {"name", "step", "stage", "value"} <= metrics[0].keys()

    def test_the_same_job_gives_the_same_weights(self, files, tmp_path):
        spec = SPEC | {"steps": [PRUNE, {"finetune": {"epochs": 1, "batch_size": 40}}], "seed": 3}
        made = [compressed(tmp_path / str(i), files / "net.onnx", files / "labelled.npz", spec)[0] for i in range(2)]
        assert sha256(artifact(made[0], "model.onnx")) == sha256(artifact(made[1], "model.onnx"))

    def test_torchscript_in_and_out(self, files, tmp_path):
        attempt, outcome = compressed(tmp_path, files / "net.pt", files / "labelled.npz", SPEC)
        assert outcome["status"] == "succeeded", outcome
        names = dict(torch.jit.load(str(files / "net.pt")).state_dict())
        report = json.loads(artifact(attempt, "report.json").read_text())
        assert {row["name"] for row in report["weights"]} <= names.keys()
        assert outcome["result"]["parity"]["onnx"] is None and outcome["result"]["baseline"]["size_bytes"].keys() == {
            "torchscript"
        }
        xt, yt = pictures(120, 2)
        out = torch.jit.load(str(artifact(attempt, "model.pt")))(torch.from_numpy(prepared(xt)))
        out = out[0] if isinstance(out, tuple) else out
        assert outcome["result"]["compressed"]["accuracy"] == (out.argmax(-1).numpy() == yt).mean() > 0.8

    def test_without_labels_agreement_decides(self, files, tmp_path):
        spec = {"preprocess": PREPROCESS, "steps": [PRUNE, {"distill": {"epochs": 1, "batch_size": 40}}]}
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "unlabelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        assert "accuracy" not in outcome["result"]["compressed"] and outcome["result"]["compressed"]["agreement"] > 0.8

    def test_without_data_or_statistics_there_is_proof_and_no_recovery(self, files, tmp_path):
        attempt, outcome = compressed(tmp_path, files / "net.onnx", None, {"steps": [PRUNE]})
        assert outcome["status"] == "succeeded", outcome
        assert any("carries no BatchNorm statistics" in warning for warning in outcome["warnings"])
        assert any("accuracy is not verified" in warning for warning in outcome["warnings"])
        assert outcome["result"]["unverified_accuracy"] is True and outcome["result"]["parity"]["onnx"] < 1e-4
        stages = [stage["name"] for stage in json.loads(artifact(attempt, "report.json").read_text())["stages"]]
        assert stages == ["preparing", "synthesis", "baseline", "prune", "recover", "verify", "latency"]

    def test_without_data_recovery_is_on_inputs_that_match_the_statistics(self, files, tmp_path):
        signature = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
        spec = {"inputs": signature, "steps": [{"prune": {"target": {"macs": "20%"}}}]}
        raw = spec | {"steps": [{"prune": {"target": {"macs": "20%"}, "recovery": "none"}}]}
        (mended, outcome), (cut, plain) = (
            compressed(tmp_path / name, files / "net.pt", None, each) for name, each in (("m", spec), ("r", raw))
        )
        assert outcome["status"] == plain["status"] == "succeeded", (outcome, plain)
        assert outcome["result"]["unverified_accuracy"] is plain["result"]["unverified_accuracy"] is True
        assert not any("not repaired" in warning for warning in outcome["warnings"])
        x = torch.from_numpy(prepared(pictures(400, 5)[0]))
        outs = [
            torch.jit.load(str(path))(x)
            for path in (files / "net.pt", *(artifact(a, "model.pt") for a in (mended, cut)))
        ]
        want, near, far = (out[0] if isinstance(out, tuple) else out for out in outs)
        assert (near - want).square().mean() < 0.25 * (far - want).square().mean()
        assert (near.argmax(-1) == want.argmax(-1)).float().mean() > 0.9
        stages = json.loads(artifact(mended, "report.json").read_text())["stages"]
        found = {stage["name"]: stage["metrics"] for stage in stages}
        assert found["synthesis"]["distance"] < found["synthesis"]["distance_before"] / 10
        assert found["recover"]["refitted"] > 3

    def test_values_are_learned_too(self, files, tmp_path):
        spec = {"preprocess": PREPROCESS, "steps": [PRUNE, {"distill": {"epochs": 1, "batch_size": 40}}]}
        _, outcome = compressed(tmp_path, files / "value.onnx", files / "values.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        result = outcome["result"]
        assert (
            result["compressed"]["agreement"] is None
            and result["compressed"]["rmse"] < 2 * result["baseline"]["rmse"] + 0.1
        )

    def test_a_network_of_one_sample_at_a_time_is_trained_on_batches(self, files, tmp_path):
        steps = [PRUNE, {"distill": {"epochs": 1, "batch_size": 40}}]
        spec = SPEC | {"steps": steps, "outputs": ["onnx", "torchscript", "exported_program"]}
        attempt, outcome = compressed(tmp_path, files / "fixed.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        session = onnxruntime.InferenceSession(str(artifact(attempt, "model.onnx")), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == [1, 1, 8, 8]
        assert outcome["result"]["compressed"]["accuracy"] > 0.8 and max(outcome["result"]["parity"].values()) < 1e-4
        assert [row["batch"] for row in outcome["result"]["compressed"]["latency_ms"]] == [1]

    @pytest.mark.parametrize(("name", "size"), [("three", 3), ("mixed", 3)])
    def test_a_fixed_batch_above_one_is_trained_and_stays(self, name, size, files, tmp_path):
        """Where the samples are independent, at any batch; where they are not, at the file's own, with a warning."""
        export_fixed(trained(), tmp_path, name, size)
        if name == "mixed":
            mix_samples(tmp_path / "mixed.onnx")
        spec = SPEC | {"steps": [PRUNE, {"distill": {"epochs": 1, "batch_size": 40}}], "outputs": ["onnx"]}
        attempt, outcome = compressed(tmp_path, tmp_path / f"{name}.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        session = onnxruntime.InferenceSession(str(artifact(attempt, "model.onnx")), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == [size, 1, 8, 8]
        assert outcome["result"]["compressed"]["accuracy"] > 0.8
        told = [warning for warning in outcome["warnings"] if "3 samples at a time" in warning]
        assert len(told) == (name == "mixed")

    def test_normalisation_is_put_in_and_folded_back(self, files, tmp_path):
        steps = [PRUNE, {"distill": {"epochs": 2, "batch_size": 40, "normalisation": "insert"}}]
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC | {"steps": steps})
        assert outcome["status"] == "succeeded", outcome
        assert {node.op_type for node in onnx.load(artifact(attempt, "model.onnx")).graph.node} <= {
            "Conv",
            "Relu",
            "Add",
            "Flatten",
            "Gemm",
        }

    def test_two_cuts_in_turn_refer_to_the_upload(self, files, tmp_path):
        steps = [{"prune": {"target": {"macs": "70%"}}}, {"prune": {"target": {"macs": "40%"}, "scope": "layer"}}]
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC | {"steps": steps})
        assert outcome["status"] == "succeeded" and outcome["result"]["ratio"]["macs"] <= 0.4
        report = json.loads(artifact(attempt, "report.json").read_text())
        assert max(max(kept) for row in report["weights"] for kept in row["axes"].values()) > 12


class TestNoSuccess:
    def outcome(self, folder, source, data, spec, code):
        attempt, outcome = compressed(folder, source, data, spec)
        assert outcome["status"] == "failed" and outcome["error"]["code"] == code, outcome
        assert outcome["error"]["class"] == "user"
        return attempt, outcome

    def test_a_target_out_of_reach_leaves_its_report(self, files, tmp_path):
        spec = SPEC | {"steps": [{"prune": {"target": {"params": "0.01%"}}}]}
        attempt, outcome = self.outcome(
            tmp_path, files / "net.onnx", files / "labelled.npz", spec, "target_unreachable"
        )
        assert json.loads(artifact(attempt, "report.json").read_text())["result"] is None
        assert {row["name"] for row in outcome["artifacts"]} == {"report.json", "manifest.json"}

    def test_a_target_that_is_met_already_removes_nothing(self, files, tmp_path):
        spec = SPEC | {"steps": [{"prune": {"target": {"params": 10**9}}}]}
        self.outcome(tmp_path, files / "net.onnx", files / "labelled.npz", spec, "nothing_removed")

    def test_a_collapsed_output_is_kept_and_called_so(self, files, tmp_path):
        prune = {
            "target": {"params": "39%"},
            "criterion": "random",
            "recovery": "none",
            "round_to": 1,
            "include": ["*fc1*"],
        }
        spec = SPEC | {"steps": [{"prune": prune}]}
        attempt, outcome = self.outcome(
            tmp_path, files / "leaning.onnx", files / "labelled.npz", spec, "output_collapsed"
        )
        assert outcome["result"]["compressed"]["accuracy"] < 0.6 and artifact(attempt, "model.onnx").exists()

    def test_labels_of_other_classes_do_not_fit(self, files, tmp_path):
        self.outcome(tmp_path, files / "net.onnx", files / "classes.npz", SPEC, "label_mismatch")

    def test_a_network_that_is_none_is_rejected(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"hello")
        _, outcome = inspected(tmp_path / "model", tmp_path / "a.onnx")
        assert outcome["status"] == "rejected" and outcome["error"]["class"] == "user" and outcome["facts"] is None

    def test_a_data_set_that_is_none_is_rejected(self, tmp_path):
        (tmp_path / "a.npz").write_bytes(b"hello")
        attempt = Attempt(tmp_path / "data")
        told = {"file": attempt.take(tmp_path / "a.npz", "data.npz"), "format": "npz", "sha256": ""}
        assert attempt.run(kind="inspect_dataset", dataset=told)["error"]["code"] == "wrong_format"


class TestInterruption:
    def test_a_run_that_is_told_to_stop_writes_no_outcome(self, files, tmp_path):
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", SPEC, should_stop=lambda: True)
        assert outcome is None
        assert RunAborted.code == "cancelled"

    @pytest.mark.parametrize("cuts", [[PRUNE], [{"prune": {"target": {"macs": "80%"}}}, LAYERS]])
    def test_the_next_attempt_ends_where_an_undisturbed_one_does(self, cuts, files, tmp_path):
        spec = SPEC | {"steps": [*cuts, {"distill": {"epochs": 3, "batch_size": 40}}]}
        whole, _ = compressed(tmp_path / "whole", files / "net.onnx", files / "labelled.npz", spec)
        checkpoints = tmp_path / "checkpoints"

        def stop():
            return (checkpoints / f"training-{len(cuts)}.pt").exists()

        _, stopped = compressed(
            tmp_path / "first",
            files / "net.onnx",
            files / "labelled.npz",
            spec,
            should_stop=stop,
            checkpoints=str(checkpoints),
        )
        assert stopped is None and (checkpoints / "best.onnx").exists()
        again, outcome = compressed(
            tmp_path / "second", files / "net.onnx", files / "labelled.npz", spec, checkpoints=str(checkpoints)
        )
        assert outcome["status"] == "succeeded"
        assert sha256(artifact(whole, "model.onnx")) == sha256(artifact(again, "model.onnx"))
        reports = [json.loads(artifact(a, "report.json").read_text()) for a in (whole, again)]
        assert reports[0]["weights"] == reports[1]["weights"]

    def test_the_originals_answers_are_found_by_the_next_job(self, files, tmp_path):
        cache = tmp_path / "cache.npz"
        compressed(tmp_path / "a", files / "net.onnx", files / "labelled.npz", SPEC, baseline_cache=str(cache))
        assert cache.exists()
        _, outcome = compressed(
            tmp_path / "b", files / "net.onnx", files / "labelled.npz", SPEC, baseline_cache=str(cache)
        )
        _, other = compressed(tmp_path / "c", files / "net.pt", files / "labelled.npz", SPEC, baseline_cache=str(cache))
        assert outcome["status"] == other["status"] == "succeeded"
