import json

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from tests.worker.compressor.networks import compressed, export, pictures, trained
from worker.compressor import delivery, finishing
from worker.compressor.errors import ExportError
from worker.compressor.report.targets import Verdict

SPEC = {"task": "classification", "outputs": ["onnx", "torchscript"], "steps": [{"prune": {"target": {"macs": "60%"}}}]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    export(trained(epochs=2), folder)
    x, y = pictures(200, 1)
    np.savez(folder / "data.npz", x=x.astype(np.float32) / 255, y=y)
    return folder


class TestDelivery:
    def test_weights_come_with_the_networks(self, files, tmp_path):
        attempt, outcome = compressed(tmp_path, files / "net.pt", files / "data.npz", SPEC)
        assert outcome["status"] == "succeeded", outcome
        row = next(row for row in outcome["artifacts"] if row["kind"] == "weights")
        assert row["name"] == "weights.safetensors" and row["format"] == "safetensors"
        found = load_file(attempt.folder / row["file"])
        assert {"stem.weight", "bn.running_mean", "fc2.bias"} <= found.keys() and len(found["fc2.bias"]) == 4

    def test_folded_batchnorm_is_gone_from_every_format(self, files, tmp_path):
        spec = SPEC | {"fold_batchnorm": True}
        attempt, outcome = compressed(tmp_path, files / "net.pt", files / "data.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        output = attempt.folder / "output"
        assert "BatchNormalization" not in {node.op_type for node in onnx.load(output / "model.onnx").graph.node}
        assert not any("running" in name for name in load_file(output / "weights.safetensors"))
        assert max(error for error in outcome["result"]["parity"].values() if error is not None) < 1e-4
        rows = {row["name"]: row for row in json.loads((output / "report.json").read_text())["layers"]}
        assert rows["bn1"]["params_after"] == 0 and rows["bn1"]["params_before"] == 32
        counted = sum(row["params_after"] for row in rows.values())
        assert counted == outcome["result"]["compressed"]["num_params"]

    def test_a_format_that_cannot_be_written_costs_the_others_nothing(self, files, tmp_path, monkeypatch):
        def refuse(network, path):
            path.write_bytes(b"half a file")
            raise RuntimeError("the disk is on fire")

        monkeypatch.setitem(delivery._WRITERS, "torchscript", refuse)
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "data.npz", SPEC)
        assert outcome["status"] == "failed" and outcome["error"]["code"] == "export_failed"
        names = {row["name"] for row in outcome["artifacts"]}
        assert names == {"model.onnx", "weights.safetensors", "report.json", "manifest.json"}
        report = json.loads((attempt.folder / "output" / "report.json").read_text())
        assert report["result"]["parity"]["onnx"] < 1e-4 and report["result"]["parity"]["torchscript"] is None
        assert not (attempt.folder / "output" / "model.pt").exists()

    def test_a_format_that_cannot_be_written_is_told_before_training(self, files, tmp_path, monkeypatch):
        def refuse(network, path):
            raise ExportError("the network cannot be exported")

        monkeypatch.setitem(delivery._WRITERS, "torchscript", refuse)
        spec = SPEC | {"steps": [*SPEC["steps"], {"finetune": {"epochs": 1}}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "data.npz", spec)
        assert outcome["status"] == "failed" and outcome["artifacts"] == []
        assert outcome["error"]["code"] == "export_failed" and "leave 'torchscript' out" in outcome["error"]["hint"]
        assert {event["stage"] for event in attempt.events if "stage" in event} <= {"preparing"}

    def test_files_that_do_not_reopen_leave_the_report(self, files, tmp_path, monkeypatch):
        def refuse(*args):
            raise ExportError("it does not open")

        monkeypatch.setattr(finishing, "ask", refuse)
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "data.npz", SPEC)
        assert outcome["error"]["code"] == "export_failed" and outcome["result"] is None
        assert json.loads((attempt.folder / "output" / "report.json").read_text())["weights"]

    def test_a_missed_target_tells_what_was_asked(self, files, tmp_path, monkeypatch):
        missed = Verdict("macs", 10, 12, False)
        monkeypatch.setattr(finishing, "judge", lambda *figures: [missed])
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "data.npz", SPEC)
        assert outcome["error"]["code"] == "target_unreachable" and outcome["error"]["detail"] == missed.detail
        assert outcome["result"]["target"] == {"asked": {"macs": "60%"}, "met": False}
