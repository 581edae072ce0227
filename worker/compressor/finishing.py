"""From the finished network to files that are proved: write, reopen elsewhere, compare, time, report.

What was made is kept even where it is no success: the outcome's status says what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.spec.targets import LatencyTarget
from worker.compressor.data.dataset import Rows
from worker.compressor.delivery import FILES, Delivery, deliver, outgoing
from worker.compressor.errors import CompressorError, ExportError, OutputCollapsed, RunAborted, TargetUnreachable
from worker.compressor.evaluation.isolated import ask
from worker.compressor.evaluation.kept import keep_arrays
from worker.compressor.evaluation.latency import SECONDS
from worker.compressor.graph.counts import Counts, count
from worker.compressor.graph.exporters.onnx import write_onnx
from worker.compressor.graph.network import Network
from worker.compressor.graph.precision import stored_dtypes
from worker.compressor.graph.proof import SATURATING
from worker.compressor.graph.surgery import WeightCut, weight_cuts
from worker.compressor.inspection import gzip_bytes
from worker.compressor.job import Job, answers_file, identity
from worker.compressor.outcome import Artifact, Outcome, Status
from worker.compressor.report.counts import layer_rows, pins, totals
from worker.compressor.report.documents import manifest, report, subject, write_json
from worker.compressor.report.result import ratios
from worker.compressor.report.studies import write_studies
from worker.compressor.report.targets import Verdict, asked_targets, judge, latency_verdict, summary
from worker.compressor.timing import batch_of, batches_of, time_networks

PARITY_ROWS = 32
#: How long a latency that seems missed is measured again.
LONGER_SECONDS = (2.0, 6.0)
# Between the network in memory and a file that was written from it.
# Half precision rounds every value on the way, to 11 bits and to 8.
PARITY = {"float32": 1e-3, "float64": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


def finish(job: Job) -> Outcome:
    """Artifacts, result and status; never `succeeded` without proof. A file that cannot be written or read costs nothing else."""
    cuts, context = weight_cuts(job.network), job.context
    network = outgoing(job.network, fold_batchnorm=context.spec.fold_batchnorm)
    after = count(network, job.shapes)
    delivery = deliver(network, job.formats, context.request.output)
    error, result = delivery.error, None
    try:
        if delivery.networks:
            checked = _verify(job, network, delivery)
            latency = _time(job, network, delivery)
            result, missed = _result(job, after, delivery, checked, latency)
            error = error or _verdict(job, checked) or missed
    except RunAborted:
        raise
    except CompressorError as failure:
        error = error or failure
    artifacts = delivery.artifacts
    artifacts += documents(job, artifacts, after, result, cuts)
    status: Status = "failed" if error else "succeeded"
    return Outcome(status, error.as_dict() if error else None, context.warnings, result, None, artifacts)


def finish_study(job: Job) -> Outcome:
    """Of a job that only looked: what it found, the baseline's figures, and no network."""
    result = {
        "baseline": _baseline(job),
        **dict.fromkeys(("compressed", "ratio", "target", "verified", "parity")),
        "unverified_accuracy": not job.has_data,
    }
    artifacts = documents(job, [], job.counts, result)
    return Outcome("succeeded", None, job.context.warnings, result, None, artifacts)


def documents(
    job: Job,
    artifacts: list[Artifact],
    after: Counts,
    result: dict[str, Any] | None,
    cuts: list[WeightCut] | None = None,
) -> list[Artifact]:
    """Write report, findings and manifest beside the networks; `cuts` are those of the job's network where that is not said."""
    context, proven = job.context, job.proven
    inexact_kept = {"exact": not proven.inexact, "inexact": proven.inexact}
    rows = layer_rows(job.counts, after, proven.kept_because)
    output = context.request.output
    cuts = weight_cuts(job.network) if cuts is None else cuts
    write_json(
        output / "report.json",
        report(
            context,
            result=result,
            layers=rows,
            pins=pins(rows),
            weights=[row.as_dict() for row in cuts],
            masks=_masks(job),
            **inexact_kept,
        ),
    )
    made = [Artifact("report.json", "report", "json", "output/report.json")]
    made += write_studies(job.studies, subject(context), output)
    write_json(output / "manifest.json", manifest(context, [*artifacts, *made]))
    return [*made, Artifact("manifest.json", "manifest", "json", "output/manifest.json")]


def _masks(job: Job) -> list[dict[str, Any]]:
    """The uploaded tensors in which single weights were set to zero: `{name, size, zeros}`."""
    tensors, origins = job.network.tensors, job.network.origins
    return [
        {"name": origins[name].source, "size": tensors[name].size, "zeros": int((tensors[name] == 0).sum())}
        for name in job.proven.masked
        if name in tensors
    ]


def _verify(job: Job, network: Network, delivery: Delivery) -> dict[str, Any]:
    """Open the files again in a fresh process, and judge them on every held-out row."""
    context, folder = job.context, job.context.request.folder
    with context.stage("verify") as stage:
        context.progress(0.2)
        _keep_reference(job, network, folder / "parity.npz")
        checked = ask(
            "worker.compressor.evaluation.reopened",
            {
                "folder": str(folder), "graph": str(job.graph), "first": next(iter(delivery.networks)),
                "files": {name: str(path) for name, path in delivery.networks.items()},
                "identity": identity(context), "answers": str(answers_file(context)),
                "parity": str(folder / "parity.npz"), "shapes": job.shapes, "most_rows": job.answers.most_rows,
            },
            folder,
        )  # fmt: skip
        stage.metrics |= {"figures": checked["figures"], "parity": checked["parity"]}
    return checked


def _time(job: Job, network: Network, delivery: Delivery) -> dict[str, Any]:
    """Both networks on the clock; a latency that seems missed is measured anew for longer before that is believed."""
    context, (asked, batch) = job.context, _latency_target(job)
    with context.stage("latency"):
        # The ONNX form is what gets timed, so it is made even where nobody asked for it.
        timed = delivery.networks.get("onnx")
        if timed is None:
            timed = context.request.folder / "timed.onnx"
            write_onnx(network, timed)
        for seconds in (SECONDS, *LONGER_SECONDS):
            found = time_networks(job, timed, batches_of(job, asked), seconds)
            if asked is None or latency_verdict(asked, found["before"], found["after"], batch).is_met:
                break
    return found


def _latency_target(job: Job) -> tuple[LatencyTarget | None, int | None]:
    """The target of latency, and the batch that it is about."""
    target = asked_targets(job.context.spec).get("latency_ms")
    return (target, batch_of(job, target)) if isinstance(target, LatencyTarget) else (None, None)


def _baseline(job: Job) -> dict[str, Any]:
    source = job.facts.get("source") or {}
    uploaded = source.get("format")
    return {
        **totals(job.counts),
        "size_bytes": {uploaded: source["size_bytes"]} if uploaded else {},
        "gzip_bytes": {uploaded: source["gzip_bytes"]} if uploaded else {},
        **job.baseline,
    }


def _result(
    job: Job, after: Counts, delivery: Delivery, checked: dict[str, Any], latency: dict[str, Any]
) -> tuple[dict[str, Any], TargetUnreachable | None]:
    """The result, and the target that the finished network does not meet."""
    sizes = {name: path.stat().st_size for name, path in delivery.networks.items()}
    packed = {name: gzip_bytes(path) for name, path in delivery.networks.items()}
    before = _baseline(job) | {"latency_ms": latency["before"]}
    compressed = {
        **totals(after),
        "size_bytes": sizes,
        "gzip_bytes": packed,
        "latency_ms": latency["after"],
        **checked["figures"],
    }
    asked, (_, batch) = asked_targets(job.context.spec), _latency_target(job)
    verdicts = judge(asked, before, compressed, (job.uploaded[0], job.weighed_format), batch)
    result = {
        "baseline": before,
        "compressed": compressed,
        "ratio": ratios(before, compressed),
        "target": summary(asked, verdicts) | _timed(job, batch, latency),
        "verified": {"reloaded": True, "finite": checked["finite"], "metric_recomputed": True},
        "parity": {name: checked["parity"].get(name) for name in FILES},
        "unverified_accuracy": not job.has_data,
    }
    return result, _missed(verdicts)


def _timed(job: Job, batch: int | None, latency: dict[str, Any]) -> dict[str, Any]:
    """What a target of latency is measured with."""
    if batch is None:
        return {}
    runtime = latency["after"][0]["runtime"]
    return {"timed": {"batch": batch, "runtime": runtime, "threads": job.context.request.threads}}


def _missed(verdicts: Sequence[Verdict]) -> TargetUnreachable | None:
    missed = next((verdict for verdict in verdicts if not verdict.is_met), None)
    return None if missed is None else TargetUnreachable(missed.detail, asked=missed.limit, best=missed.found)


def _verdict(job: Job, checked: dict[str, Any]) -> CompressorError | None:
    """Why the files are worth nothing, None where they are."""
    if checked["collapsed"]:
        return OutputCollapsed(f"the compressed network is worth nothing: {checked['collapsed']}")
    limit = max([PARITY["float32"], *(PARITY[dtype] for dtype in stored_dtypes(job.original))])
    wrong = [name for name, error in checked["parity"].items() if error is None or error > limit]
    if not wrong:
        return None
    return ExportError(
        f"the {wrong[0]} file does not compute what the network in memory does: error {checked['parity'][wrong[0]]}"
    )


def _keep_reference(job: Job, network: Network, path: Path) -> None:
    """Inputs and what the network in memory makes of them: what the files must reproduce."""
    feeds = _first_rows(job.data.test, min(PARITY_ROWS, job.answers.most_rows or PARITY_ROWS))
    outputs = job.runner(network)(feeds)
    arrays = {f"input{i:04d}": feed for i, feed in enumerate(feeds)} | {
        f"output{i:04d}": o for i, o in enumerate(outputs)
    }
    arrays["resolutions"] = np.array(_resolutions(network))
    keep_arrays(path, arrays)


def _resolutions(network: Network) -> list[float]:
    """Per output the difference that says nothing: runtimes compute a sigmoid to a few roundings of its range, not of
    its value (onnxruntime was measured at 1.4 of them, at 2.7 for tanh).
    """
    makers = {name: node.op for node in network.nodes for name in node.outputs}
    rounding = 4 * float(np.finfo(np.float32).eps)
    return [rounding if makers.get(port.name) in SATURATING else 0.0 for port in network.outputs]


def _first_rows(rows: Rows, count: int) -> tuple[np.ndarray, ...]:
    return rows.feeds(slice(0, count))
