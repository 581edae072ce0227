"""How an attempt ended, for the worker: `outcome.json`, written last and all at once."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from worker.compressor.errors import CompressorError

Kind = Literal["model", "weights", "report", "manifest", "sensitivity"]
Format = Literal["onnx", "torchscript", "exported_program", "safetensors", "json", "svg"]
Status = Literal["succeeded", "failed", "infeasible", "ready", "rejected"]


@dataclass(frozen=True)
class Artifact:
    """One file to keep: `file` is relative to the attempt's folder."""

    name: str
    kind: Kind
    format: Format
    file: str


@dataclass
class Outcome:
    """The end of one attempt; `artifacts` are kept whatever the status."""

    status: Status
    error: dict[str, str | None] | None = None
    warnings: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    artifacts: list[Artifact] = field(default_factory=list)


def failure(error: BaseException, status: Status) -> Outcome:
    """The outcome of an error: ours as it is, memory as `out_of_memory`, anything else as a bug of ours."""
    if isinstance(error, CompressorError):
        return Outcome(status, error.as_dict())
    if _is_out_of_memory(error):
        hint = "use a smaller network or batch_size, or a worker with more memory"
        detail = "the network and the data need more memory than one job may use"
        return Outcome(status, CompressorError(detail, code="out_of_memory", hint=hint, error_class="user").as_dict())
    detail = f"the engine failed: {type(error).__name__}"
    return Outcome(status, CompressorError(detail, code="internal_error", hint="tell us the job's id").as_dict())


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write `outcome.json` so that it is either whole or not there, also after a crash."""
    write_whole(folder / "outcome.json", json.dumps(asdict(outcome), allow_nan=False).encode())


def write_whole(path: Path, blob: bytes) -> None:
    """Write a file by temporary name, fsync, rename, and fsync of the folder."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    keep_whole(temporary, path)


def keep_whole(temporary: Path, path: Path) -> None:
    """Give a finished file its name, so that a crash leaves the old one or the new one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text or "bad_alloc" in text
    )
