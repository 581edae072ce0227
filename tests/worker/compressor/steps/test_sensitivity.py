"""Sensitivity steps and allocation by them, in whole attempts."""

import json
from xml.etree import ElementTree

import pytest

from tests.worker.compressor.networks import PREPROCESS, PRUNE, SPEC, artifact, compressed
from worker.compressor.steps import metering, recovery

STUDY = {"sensitivity": {"ratios": [0.25, 0.5, 0.75], "samples": 40, "tradeoff": ["70%", "40%"]}}
ONLY = SPEC | {"steps": [STUDY]}


def study(attempt, name="sensitivity.json"):
    return json.loads(artifact(attempt, name).read_text())


class TestStudy:
    def test_it_says_what_each_group_loses_and_makes_no_network(self, files, tmp_path):
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", ONLY)
        assert outcome["status"] == "succeeded", outcome
        names = {row["name"]: (row["kind"], row["format"]) for row in outcome["artifacts"]}
        assert names == {
            "sensitivity.json": ("sensitivity", "json"),
            "sensitivity.svg": ("sensitivity", "svg"),
            "tradeoff.svg": ("sensitivity", "svg"),
            "report.json": ("report", "json"),
            "manifest.json": ("manifest", "json"),
        }
        assert outcome["result"]["baseline"]["accuracy"] > 0.8 and outcome["result"]["compressed"] is None
        found = study(attempt)
        assert found["metric"] == "accuracy" and found["num_samples"] == 40
        assert [len(group["layers"]) for group in found["groups"]] == [2, 1, 1]
        for group in found["groups"]:
            assert [point["ratio"] for point in group["points"]] == [0.25, 0.5, 0.75]
            kept = [point["num_kept"] for point in group["points"]]
            assert kept == [group["num_units"] * part // 4 for part in (3, 2, 1)]
            macs = [found["whole"]["macs"], *(point["macs"] for point in group["points"])]
            assert macs == sorted(macs, reverse=True) and macs[-1] < macs[0]
            losses = [point["divergence"] for point in group["points"]]
            assert losses[-1] > losses[0] >= 0
        layers = {layer for group in found["groups"] for layer in group["layers"]}
        assert layers and not layers & found["kept_because"].keys() and len(found["kept_because"]) == 1
        report = json.loads(artifact(attempt, "report.json").read_text())
        assert [stage["name"] for stage in report["stages"]] == ["preparing", "baseline", "sensitivity"]
        assert report["weights"] == [] and report["exact"]

    def test_the_trade_off_is_what_a_prune_job_gives(self, files, tmp_path):
        attempt, _ = compressed(tmp_path / "study", files / "net.onnx", files / "labelled.npz", ONLY)
        whole, milder, narrower = study(attempt)["tradeoff"]
        assert (whole["asked"], whole["macs_share"], whole["agreement"]) == (None, 1, 1)
        assert 0.55 < milder["macs_share"] <= 0.7 and 0.3 < narrower["macs_share"] <= 0.4
        assert narrower["divergence"] > milder["divergence"] > 0
        prune = {"prune": {"target": {"macs": "40%"}}}
        _, outcome = compressed(
            tmp_path / "prune", files / "net.onnx", files / "labelled.npz", SPEC | {"steps": [prune]}
        )
        assert outcome["result"]["compressed"]["macs"] == narrower["macs"]
        assert abs(outcome["result"]["compressed"]["agreement"] - narrower["agreement"]) < 0.1

    def test_the_plots_are_pictures_with_a_line_for_each_group(self, files, tmp_path):
        attempt, _ = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", ONLY)
        lines = {}
        for name in ("sensitivity.svg", "tradeoff.svg"):
            root = ElementTree.parse(artifact(attempt, name)).getroot()
            lines[name] = root.findall(".//{http://www.w3.org/2000/svg}polyline")
        assert [len(line.get("points").split()) for line in lines["sensitivity.svg"]] == [4, 4, 4]
        assert [len(line.get("points").split()) for line in lines["tradeoff.svg"]] == [3, 3]

    def test_without_labels_it_is_about_agreement(self, files, tmp_path):
        spec = {"preprocess": PREPROCESS, "steps": [STUDY]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "unlabelled.npz", spec)
        assert outcome["status"] == "succeeded" and study(attempt)["metric"] == "agreement"
        assert "accuracy" not in study(attempt)["groups"][0]["points"][0]

    def test_values_have_an_error(self, files, tmp_path):
        spec = {"preprocess": PREPROCESS, "steps": [STUDY]}
        attempt, outcome = compressed(tmp_path, files / "value.onnx", files / "values.npz", spec)
        assert outcome["status"] == "succeeded" and study(attempt)["metric"] == "rmse"

    def test_the_shown_metric_and_the_groups_can_be_chosen(self, files, tmp_path):
        options = {"metric": "divergence", "exclude": ["*conv1*"], "tradeoff": [], "refit": False}
        spec = SPEC | {"steps": [{"sensitivity": STUDY["sensitivity"] | options}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        found = study(attempt)
        assert found["metric"] == "divergence" and found["tradeoff"] == [] and len(found["groups"]) == 1
        assert "tradeoff.svg" not in {row["name"] for row in outcome["artifacts"]}
        assert any("conv1" in layer for layer in found["kept_because"])

    def test_a_size_out_of_reach_says_so_and_costs_nothing_else(self, files, tmp_path):
        spec = SPEC | {"steps": [{"sensitivity": STUDY["sensitivity"] | {"tradeoff": [10, "60%"]}}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        _, missed, reached = study(attempt)["tradeoff"]
        assert outcome["status"] == "succeeded" and "cannot go down" in missed["error"] and reached["macs_share"] <= 0.6

    def test_refitted_groups_lose_less(self, files, tmp_path):
        found = []
        for refit in (False, True):
            spec = SPEC | {"steps": [{"sensitivity": STUDY["sensitivity"] | {"refit": refit, "tradeoff": []}}]}
            attempt, _ = compressed(tmp_path / str(refit), files / "net.onnx", files / "labelled.npz", spec)
            found.append([group["points"][1]["divergence"] for group in study(attempt)["groups"]])
        assert all(fitted < cut for cut, fitted in zip(*found, strict=True))

    def test_metrics_and_progress_are_told_on_the_way(self, files, tmp_path):
        attempt, _ = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", ONLY)
        told = {event["name"] for event in attempt.events if event["kind"] == "metric"}
        assert {f"accuracy_without_{ratio}" for ratio in (0.25, 0.5, 0.75)} | {"tradeoff_accuracy"} <= told
        progress = [event["progress"] for event in attempt.events if event["kind"] == "progress"]
        assert progress == sorted(progress)

    def test_it_stops_when_it_is_told_to(self, files, tmp_path, monkeypatch):
        measured = counted(monkeypatch)
        _, outcome = compressed(
            tmp_path, files / "net.onnx", files / "labelled.npz", ONLY, should_stop=lambda: len(measured) > 3
        )
        assert outcome is None and len(measured) == 4


class TestTogetherWithPruning:
    def test_a_network_is_made_beside_the_study(self, files, tmp_path):
        spec = SPEC | {"steps": [STUDY, PRUNE, STUDY]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded" and 0.4 < outcome["result"]["ratio"]["macs"] <= 0.5
        names = {row["name"] for row in outcome["artifacts"]}
        assert {"model.onnx", "sensitivity.json", "sensitivity-2.json", "tradeoff-2.svg"} <= names
        after = study(attempt, "sensitivity-2.json")
        assert after["whole"]["macs"] == outcome["result"]["compressed"]["macs"] and after["whole"]["divergence"] > 0
        assert "error" in after["tradeoff"][1]  # 70 % are met already

    def test_the_study_of_an_earlier_attempt_is_kept(self, files, tmp_path, monkeypatch):
        kept = {"checkpoints": str(tmp_path / "kept")}
        first, _ = compressed(tmp_path / "a", files / "net.onnx", files / "labelled.npz", ONLY, **kept)
        measured = counted(monkeypatch)
        second, outcome = compressed(tmp_path / "b", files / "net.onnx", files / "labelled.npz", ONLY, **kept)
        assert outcome["status"] == "succeeded" and study(second) == study(first) and not measured
        assert artifact(second, "sensitivity.svg").exists() and not (tmp_path / "kept/best.onnx").exists()


def counted(monkeypatch):
    """A list that grows with every network that is examined."""
    measured = []
    examine = metering.Exam.__call__

    def count(self, run):
        measured.append(run)
        return examine(self, run)

    monkeypatch.setattr(metering.Exam, "__call__", count)
    return measured


class TestCost:
    def test_a_point_takes_three_passes_at_most(self, files, tmp_path, monkeypatch):
        """One through the cut network; and with a refit one through each of both, over fewer rows."""
        walks = []
        reconstruct = recovery.reconstruct

        def count(original, made, feeds, **options):
            walks.append(len(next(iter(feeds.values()))))
            return reconstruct(original, made, feeds, **options)

        monkeypatch.setattr(recovery, "reconstruct", count)
        measured = counted(monkeypatch)
        spec = SPEC | {"steps": [{"sensitivity": {"tradeoff": []}}]}
        compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert len(measured) == 1 + 9 and len(walks) == 9 and max(walks) <= metering.REFIT_ROWS


class TestReuse:
    def test_another_job_on_the_same_bytes_measures_nothing_again(self, files, tmp_path, monkeypatch):
        cache = {"baseline_cache": str(tmp_path / "cache.json")}
        first, _ = compressed(tmp_path / "a", files / "net.onnx", files / "labelled.npz", ONLY, **cache)
        measured = counted(monkeypatch)
        second, _ = compressed(tmp_path / "b", files / "net.onnx", files / "labelled.npz", ONLY, **cache)
        assert study(second)["groups"] == study(first)["groups"]
        assert len(measured) == 1 + 3  # the network as it is, and the trade-off
        other = SPEC | {"steps": [{"sensitivity": STUDY["sensitivity"] | {"samples": 30, "tradeoff": []}}]}
        compressed(tmp_path / "c", files / "net.onnx", files / "labelled.npz", other, **cache)
        assert len(measured) == 4 + 1 + 9

    def test_a_cache_that_is_no_json_is_ignored(self, files, tmp_path):
        (tmp_path / "cache.sensitivity.json").write_text("{")
        cache = {"baseline_cache": str(tmp_path / "cache.json")}
        _, outcome = compressed(tmp_path / "a", files / "net.onnx", files / "labelled.npz", ONLY, **cache)
        assert outcome["status"] == "succeeded"


class TestAllocation:
    @pytest.mark.parametrize("target", [{"macs": "40%"}, {"params": "45%", "macs": "60%"}])
    def test_the_target_is_met_and_little_is_lost(self, target, files, tmp_path):
        results = {}
        for allocation in ("score", "sensitivity"):
            prune = {"prune": {"target": target, "allocation": allocation, "round_to": 1}}
            spec = SPEC | {"steps": [prune]}
            attempt, outcome = compressed(tmp_path / allocation, files / "net.onnx", files / "labelled.npz", spec)
            assert outcome["status"] == "succeeded" and outcome["result"]["target"]["met"], outcome
            results[allocation] = outcome["result"]["compressed"], report_shapes(attempt)
        assert results["sensitivity"][1] != results["score"][1]
        assert results["sensitivity"][0]["output_error"] < 1.5 * results["score"][0]["output_error"]

    def test_a_study_before_it_is_not_measured_twice(self, files, tmp_path, monkeypatch):
        measured = counted(monkeypatch)
        prune = {"prune": {"target": {"macs": "50%"}, "allocation": "sensitivity"}}
        step = {"sensitivity": {"tradeoff": []}}
        spec = SPEC | {"steps": [step, prune]}
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded" and len(measured) == 1 + 9 + 1

    @pytest.mark.parametrize("recovery", ["none", {"refit": False}], ids=["no recovery", "no refit"])
    @pytest.mark.parametrize("refit", [False, True], ids=["as cut", "refitted"])
    def test_without_a_refit_widths_are_chosen_by_what_is_lost_as_cut(
        self, refit, recovery, files, tmp_path, monkeypatch
    ):
        measured = counted(monkeypatch)
        prune = {"prune": {"target": {"macs": "50%"}, "allocation": "sensitivity", "recovery": recovery}}
        spec = SPEC | {"steps": [{"sensitivity": {"tradeoff": [], "refit": refit}}, prune]}
        _, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded" and len(measured) == 1 + 9 + 1 + (9 if refit else 0)

    @pytest.mark.parametrize(
        ("options", "how"),
        [
            ({}, "score"),
            ({"criterion": "l1"}, "sensitivity"),
            ({"recovery": "none"}, "sensitivity"),
            ({"recovery": "none", "criterion": "random"}, "score"),
        ],
    )
    def test_by_itself_a_job_measures_where_scores_say_less_and_never_helps_a_control(
        self, options, how, files, tmp_path
    ):
        spec = SPEC | {"steps": [{"prune": {"target": {"macs": "60%"}} | options}]}
        attempt, outcome = compressed(tmp_path, files / "net.onnx", files / "labelled.npz", spec)
        assert outcome["status"] == "succeeded", outcome
        stages = json.loads(artifact(attempt, "report.json").read_text())["stages"]
        assert [s["metrics"]["allocation"] for s in stages if s["name"] == "prune"] == [how]


def report_shapes(attempt):
    report = json.loads(artifact(attempt, "report.json").read_text())
    return [row["shape_after"] for row in report["layers"]]
