"""Size and latency as targets: whole attempts, on a clock that is made up except where it says otherwise."""

import json

import numpy as np
import onnx
import pytest

from tests.worker.compressor.networks import PREPROCESS, artifact, compressed, export, trained
from worker.compressor import finishing
from worker.compressor.steps import latency
from worker.compressor.steps.latency import LatencyGauge

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "exported_program": "model.pt2"}
TOLD = {"p50": 9.0, "p95": 9.0, "runtime": "onnxruntime", "device": "cpu"}
TIMED = {"batch": 1, "runtime": "onnxruntime", "threads": 1}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    export(trained(epochs=1, width=96), folder)
    return folder


def spec(target, **options):
    return {"preprocess": PREPROCESS, "steps": [{"prune": {"target": target, "recovery": "none"} | options}]}


def weights_in(path):
    """What the made-up clock goes by: elements of the weights, be they written or filled in."""
    graph = onnx.load(path).graph
    filled = [array for array in graph.initializer if array.name.endswith(".shape")]
    sizes = [np.prod(array.dims) for array in graph.initializer if array not in filled]
    return float(sum(sizes)) + sum(float(np.prod(onnx.numpy_helper.to_array(array))) for array in filled)


class Clock:
    """Whole networks take longer than their layers together, and not in proportion."""

    def __init__(self, monkeypatch, noise=lambda count: 1.0):
        self.seconds, self.noise = [], noise
        for module in (latency, finishing):
            monkeypatch.setattr(module, "time_networks", self.networks)
        monkeypatch.setattr(latency, "ask", self.layers)

    def networks(self, job, file, batches, seconds):
        self.seconds.append(seconds)
        noise = self.noise(len(self.seconds))
        rows = [
            [{"batch": batch, "min": self.time(path) * slow} | TOLD for batch in batches]
            for path, slow in ((job.graph, 1.0), (file, noise))
        ]
        return {"before": rows[0], "after": rows[1], "alone": True}

    def layers(self, module, question, folder):
        seconds = [[weights_in(file) * 1e-8 for file in files] for files in question["layers"]]
        return {"seconds": seconds, "alone": True}

    @staticmethod
    def time(path):
        return 0.3 + (weights_in(path) * 1e-5) ** 1.2


class TestSize:
    @pytest.mark.parametrize(("source", "form"), [("net.onnx", "onnx"), ("net.pt", "torchscript")])
    @pytest.mark.parametrize("share", [0.7, 0.3])
    def test_the_file_is_as_large_as_asked(self, files, tmp_path, source, form, share):
        asked = f"{share * 100:g}%"
        attempt, outcome = compressed(
            tmp_path, files / source, files / "unlabelled.npz", spec({"size": asked}, round_to=1)
        )
        assert outcome["status"] == "succeeded", outcome
        whole, found = (files / source).stat().st_size, artifact(attempt, FILES[form]).stat().st_size
        assert (share - 0.01) * whole - 500 <= found <= share * whole  # a unit of the last layers has up to 500 bytes
        assert outcome["result"]["ratio"]["size_bytes"] == {form: found / whole}
        assert outcome["result"]["target"] == {"asked": {"size": asked}, "met": True}

    def test_other_formats_are_compared_by_the_first(self, files, tmp_path):
        options = spec({"size": 20_000}, round_to=1) | {"outputs": ["torchscript", "exported_program"]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", None, options)
        assert outcome["status"] == "succeeded", outcome
        assert 19_000 <= artifact(attempt, "model.pt").stat().st_size <= 20_000

    def test_a_size_below_all_weights_is_unreachable(self, files, tmp_path):
        _, outcome = compressed(tmp_path, files / "net.pt", files / "unlabelled.npz", spec({"size": 3000}))
        assert (
            outcome["error"]["code"] == "target_unreachable"
            and "size cannot go down to 3000" in outcome["error"]["detail"]
        )

    def test_batchnorm_that_is_folded_on_the_way_out_is_not_counted(self, files, tmp_path):
        options = spec({"size": "50%"}, round_to=1) | {"fold_batchnorm": True}
        attempt, outcome = compressed(tmp_path, files / "net.pt", files / "unlabelled.npz", options)
        whole, found = (files / "net.pt").stat().st_size, artifact(attempt, "model.pt").stat().st_size
        assert outcome["status"] == "succeeded" and 0.49 * whole - 500 <= found <= 0.5 * whole

    def test_several_ceilings_hold_at_once(self, files, tmp_path):
        target = {"macs": "60%", "params": "45%", "size": "55%"}
        _, outcome = compressed(tmp_path, files / "net.onnx", None, spec(target, round_to=1))
        ratio = outcome["result"]["ratio"]
        assert outcome["status"] == "succeeded" and outcome["result"]["target"] == {"asked": target, "met": True}
        assert ratio["macs"] <= 0.6 and ratio["num_params"] <= 0.45 and ratio["size_bytes"]["onnx"] <= 0.55


class TestLatency:
    @pytest.mark.parametrize("asked", ["80%", "50%", 1.2])
    def test_widths_are_chosen_until_the_whole_network_is_as_fast_as_asked(self, wide, tmp_path, monkeypatch, asked):
        Clock(monkeypatch)
        attempt, outcome = compressed(tmp_path, wide / "net.onnx", None, spec({"latency_ms": asked}, round_to=1))
        assert outcome["status"] == "succeeded", outcome
        limit = Clock.time(wide / "net.onnx") * float(asked[:-1]) / 100 if isinstance(asked, str) else asked
        assert 0.95 * limit <= Clock.time(artifact(attempt, "model.onnx")) <= 1.02 * limit
        assert outcome["result"]["target"] == {"asked": {"latency_ms": asked}, "met": True, "timed": TIMED}

    def test_a_batch_that_was_asked_for_is_listed(self, wide, tmp_path, monkeypatch):
        Clock(monkeypatch)
        asked = {"latency_ms": {"value": "60%", "batch": 5}}
        _, outcome = compressed(tmp_path, wide / "net.onnx", None, spec(asked))
        result = outcome["result"]
        assert [row["batch"] for row in result["compressed"]["latency_ms"]] == [1, 5, 64]
        assert result["target"] == {"asked": asked, "met": True, "timed": TIMED | {"batch": 5}}

    def test_one_slow_measurement_at_the_end_is_not_believed(self, wide, tmp_path, monkeypatch):
        clock = Clock(monkeypatch)
        monkeypatch.setattr(latency, "time_networks", Clock(monkeypatch).networks)
        monkeypatch.setattr(finishing, "time_networks", clock.networks)
        clock.noise = lambda count: 2.0 if count == 1 else 1.0
        _, outcome = compressed(tmp_path, wide / "net.onnx", None, spec({"latency_ms": "60%"}))
        assert outcome["status"] == "succeeded" and clock.seconds == [finishing.SECONDS, finishing.LONGER_SECONDS[0]]

    def test_a_network_that_stays_slow_misses_its_target(self, wide, tmp_path, monkeypatch):
        clock = Clock(monkeypatch)
        monkeypatch.setattr(latency, "time_networks", Clock(monkeypatch).networks)
        monkeypatch.setattr(finishing, "time_networks", clock.networks)
        clock.noise = lambda count: 2.0
        attempt, outcome = compressed(tmp_path, wide / "net.onnx", None, spec({"latency_ms": "60%"}))
        assert outcome["status"] == "failed" and outcome["error"]["code"] == "target_unreachable"
        assert clock.seconds == [finishing.SECONDS, *finishing.LONGER_SECONDS]
        assert outcome["result"]["target"]["met"] is False and artifact(attempt, "model.onnx").exists()

    def test_a_batch_that_memory_has_no_room_for_is_told(self, wide, tmp_path, monkeypatch):
        monkeypatch.setattr("worker.compressor.timing.affordable", lambda *args: 2)
        _, outcome = compressed(tmp_path, wide / "net.onnx", None, spec({"latency_ms": {"value": 1, "batch": 3}}))
        assert outcome["error"]["code"] == "batch_too_large" and outcome["error"]["class"] == "user"

    def test_on_the_real_clock_it_is_met_within_a_twentieth(self, wide, tmp_path, monkeypatch):
        measure, told = LatencyGauge.measure, []

        def measured(gauge, made, model, kept):
            predicted = gauge.price(model, kept) if kept else None
            found = measure(gauge, made, model, kept)
            told.append(found / predicted if predicted else 1.0)
            return found

        monkeypatch.setattr(LatencyGauge, "measure", measured)
        attempt, outcome = compressed(tmp_path, wide / "net.onnx", None, spec({"latency_ms": "60%"}))
        assert outcome["status"] == "succeeded", outcome
        assert outcome["result"]["ratio"]["latency_ms"][0]["min"] <= 0.6 * 1.05
        assert 2 / 3 < told[1] < 3 / 2  # of the first cut only the table was known
        stages = json.loads(artifact(attempt, "report.json").read_text())["stages"]
        assert "latency_ms" in next(stage for stage in stages if stage["name"] == "prune")["metrics"]
