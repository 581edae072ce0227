"""From the finished network to files that are proved: write, reopen elsewhere, compare, time, report.

What was made is kept even where it is no success: the outcome's status says what it is worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.compressor.data.dataset import Rows
from worker.compressor.errors import CompressorError, ExportError, OutputCollapsed, TargetUnreachable
from worker.compressor.evaluation.isolated import ask
from worker.compressor.graph.counts import Counts, count
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.exporters.program import write_program
from worker.compressor.graph.exporters.torchscript import write_torchscript
from worker.compressor.graph.network import Network
from worker.compressor.graph.proof import SATURATING
from worker.compressor.inspection import gzip_bytes
from worker.compressor.job import Job, answers_file, identity
from worker.compressor.outcome import Artifact, Outcome
from worker.compressor.report.counts import layer_rows, target_met, totals
from worker.compressor.report.documents import manifest, report, write_json
from worker.compressor.report.result import ratios

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "exported_program": "model.pt2"}
PARITY_ROWS, TIMED_ROWS = 32, 64
BATCHES = (1, 64)
# Between the network in memory and a file that was written from it.
PARITY = {"float32": 1e-3, "float64": 1e-3}
HALF_PARITY = 3e-2


def finish(job: Job) -> Outcome:
    """Artifacts, result and status; never `succeeded` without proof."""
    after = count(job.network, job.shapes)
    files, checked = _verify(job)
    latency = _time(job, files)
    result = _result(job, after, files, checked, latency)
    error = _verdict(job, checked, result)
    artifacts = [Artifact(FILES[name], "model", name, f"output/{FILES[name]}") for name in _formats(job)]  # type: ignore[arg-type]
    artifacts += documents(job, artifacts, after, result)
    status = "failed" if error else "succeeded"
    return Outcome(status, error.as_dict() if error else None, job.context.warnings, result, None, artifacts)  # type: ignore[arg-type]


def documents(job: Job, artifacts: list[Artifact], after: Counts, result: dict[str, Any] | None) -> list[Artifact]:
    """Write report and manifest beside the networks."""
    from worker.compressor.graph.surgery import weight_cuts

    context, proven = job.context, job.proven
    inexact_kept = {"exact": not proven.inexact, "inexact": proven.inexact}
    rows = layer_rows(job.counts, after, proven.kept_because)
    output = context.request.output
    write_json(
        output / "report.json",
        report(
            context,
            result=result,
            layers=rows,
            weights=[row.as_dict() for row in weight_cuts(job.network)],
            **inexact_kept,
        ),
    )
    made = [Artifact("report.json", "report", "json", "output/report.json")]
    write_json(output / "manifest.json", manifest(context, [*artifacts, *made]))
    return [*made, Artifact("manifest.json", "manifest", "json", "output/manifest.json")]


def _verify(job: Job) -> tuple[dict[str, Path], dict[str, Any]]:
    """Write the files, open them again in a fresh process, and judge them on every held-out row."""
    context = job.context
    with context.stage("verify") as stage:
        output, folder = context.request.output, context.request.folder
        files = {name: output / FILES[name] for name in _formats(job)}
        # The ONNX form is what gets timed, so it is made even where nobody asked for it.
        timed = files.get("onnx", folder / "timed.onnx")
        write_onnx(job.network, timed)
        if "torchscript" in files:
            write_torchscript(job.network, files["torchscript"])
        if "exported_program" in files:
            write_program(job.network, files["exported_program"])
        context.progress(0.2)
        _keep_reference(job, folder / "parity.npz")
        answers = answers_file(context)
        checked = ask(
            "worker.compressor.evaluation.reopened",
            {
                "folder": str(folder), "graph": str(job.graph), "first": _formats(job)[0], "identity": identity(context),
                "files": {name: str(path) for name, path in files.items()}, "answers": str(answers),
                "parity": str(folder / "parity.npz"), "shapes": job.shapes,
            },
            folder,
        )  # fmt: skip
        stage.metrics |= {"figures": checked["figures"], "parity": checked["parity"]}
    return {**files, "timed": timed}, checked


def _time(job: Job, files: dict[str, Path]) -> dict[str, Any]:
    context, folder = job.context, job.context.request.folder
    with context.stage("latency"):
        feeds = _first_rows(job.data.test, TIMED_ROWS)
        np.savez(folder / "timed.npz", **{f"input{i:04d}": feed for i, feed in enumerate(feeds)})  # type: ignore[arg-type]
        fixed = job.answers.batch_size
        question = {
            "before": str(job.graph), "after": str(files["timed"]), "feeds": str(folder / "timed.npz"),
            "batches": BATCHES if fixed is None else (fixed,), "threads": context.request.threads,
        }  # fmt: skip
        found = ask("worker.compressor.evaluation.latency", question, folder)
        if not found["alone"]:
            context.warn("other jobs were being timed at the same moment: the latencies are rougher than usual")
    return found


def _result(
    job: Job, after: Counts, files: dict[str, Path], checked: dict[str, Any], latency: dict[str, Any]
) -> dict[str, Any]:
    source = job.facts.get("source") or {}
    uploaded = source.get("format")
    sizes = {name: files[name].stat().st_size for name in _formats(job)}
    packed = {name: gzip_bytes(files[name]) for name in _formats(job)}
    before = {
        **totals(job.counts),
        "size_bytes": {uploaded: source["size_bytes"]} if uploaded else {},
        "gzip_bytes": {uploaded: source["gzip_bytes"]} if uploaded else {},
        "latency_ms": latency["before"],
        **job.baseline,
    }
    compressed = {
        **totals(after),
        "size_bytes": sizes,
        "gzip_bytes": packed,
        "latency_ms": latency["after"],
        **checked["figures"],
    }
    parity = {name: checked["parity"].get(name) for name in FILES}
    return {
        "baseline": before,
        "compressed": compressed,
        "ratio": ratios(before, compressed),
        "target": target_met(job.context.spec, job.counts, after),
        "verified": {"reloaded": True, "finite": checked["finite"], "metric_recomputed": True},
        "parity": parity,
    }


def _verdict(job: Job, checked: dict[str, Any], result: dict[str, Any]) -> CompressorError | None:
    """Why the result is not a success, None where it is one."""
    if checked["collapsed"]:
        return OutputCollapsed(f"the compressed network is worth nothing: {checked['collapsed']}")
    limit = PARITY.get(job.original.outputs[0].dtype, HALF_PARITY)
    wrong = [name for name, error in checked["parity"].items() if error is None or error > limit]
    if wrong:
        return ExportError(
            f"the {wrong[0]} file does not compute what the network in memory does: error {checked['parity'][wrong[0]]}"
        )
    if not result["target"]["met"]:
        asked, left = result["target"]["asked"], result["compressed"]
        detail = f"the finished network has {left['macs']} macs and {left['num_params']} params, more than the target"
        raise_for = next(iter(asked), "macs")
        return TargetUnreachable(
            f"{detail} ({asked})",
            asked=job.counts.macs,
            best=left["macs"] if raise_for == "macs" else left["num_params"],
        )
    return None


def _keep_reference(job: Job, path: Path) -> None:
    """Inputs and what the network in memory makes of them: what the files must reproduce."""
    feeds = _first_rows(job.data.test, PARITY_ROWS)
    outputs = job.runner(job.network)(feeds)
    arrays = {f"input{i:04d}": feed for i, feed in enumerate(feeds)} | {
        f"output{i:04d}": o for i, o in enumerate(outputs)
    }
    arrays["resolutions"] = np.array(_resolutions(job.network))
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _resolutions(network: Network) -> list[float]:
    """Per output the difference that says nothing: runtimes compute a sigmoid to a few roundings of its range, not of
    its value (onnxruntime was measured at 1.4 of them, at 2.7 for tanh).
    """
    makers = {name: node.op for node in network.nodes for name in node.outputs}
    rounding = 4 * float(np.finfo(np.float32).eps)
    return [rounding if makers.get(port.name) in SATURATING else 0.0 for port in network.outputs]


def _first_rows(rows: Rows, count: int) -> tuple[np.ndarray, ...]:
    return rows.feeds(slice(0, count))


def _formats(job: Job) -> list[str]:
    return list(job.context.spec.outputs or ["onnx"])
