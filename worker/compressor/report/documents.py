"""`report.json` and `manifest.json`: how a result came about, and what would be needed to make it again."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from worker.compressor.context import Context
from worker.compressor.outcome import Artifact

_VERSIONS = ("featherweight", "torch", "onnx", "onnx-ir", "onnxruntime", "numpy")


def environment(context: Context) -> dict[str, Any]:
    """What computed the result."""
    return {
        "torch": metadata.version("torch"),
        "onnxruntime": metadata.version("onnxruntime"),
        "device": _device_name(context.device),
        "threads": context.request.threads,
    }


def subject(context: Context) -> dict[str, Any]:
    """Which job found something out about which bytes."""
    request = context.request
    return {
        "job_id": request.id,
        "source_sha256": request.source.sha256 if request.source else None,
        "dataset_sha256": request.dataset.sha256 if request.dataset else None,
    }


def report(context: Context, **parts: Any) -> dict[str, Any]:
    """The report: what the request says, the stages, and `parts` (result, layers, weights, exact, inexact)."""
    source = context.request.source
    return {
        "job_id": context.request.id,
        "source_sha256": source.sha256 if source else None,
        "spec": context.spec.as_json(),
        **parts,
        "stages": [{"name": s.name, "seconds": round(s.seconds, 3), "metrics": s.metrics} for s in context.stages],
        "warnings": context.warnings,
        "environment": environment(context),
    }


def manifest(context: Context, artifacts: list[Artifact]) -> dict[str, Any]:
    """Hashes of what went in and came out, the spec with its seed, versions, and the preprocessing to repeat at inference."""
    request, spec = context.request, context.spec.as_json()
    source = request.source
    return {
        "job_id": request.id,
        "attempt": request.attempt,
        "source": {"sha256": source.sha256, "format": source.format, "name": source.name} if source else None,
        "dataset": {"sha256": request.dataset.sha256, "format": request.dataset.format} if request.dataset else None,
        "artifacts": [_hashed(request.folder / artifact.file, artifact.name) for artifact in artifacts],
        "spec": spec,
        "seed": context.spec.seed,
        "inputs": spec["inputs"],
        "preprocess": spec["preprocess"],
        "versions": {name: metadata.version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        "environment": environment(context),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Plain JSON that every reader takes: no NaN, no infinity."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def _hashed(path: Path, name: str) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "name": name,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size_bytes": path.stat().st_size,
        }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
