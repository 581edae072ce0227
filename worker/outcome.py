"""From how a child ended, and what it left in its folder, to how its row ends."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ErrorClass, stored_error
from app.storage.interface import Storage
from worker.children import LAUNCHER_LOST
from worker.ending import End, Kept
from worker.supervisor import Ending

MAX_OUTCOME_BYTES = 64 << 20
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_STATUSES = {True: {"succeeded", "failed", "infeasible"}, False: {"ready", "rejected"}}
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KINDS = {"model", "weights", "report", "manifest", "sensitivity"}
_FORMATS = {"onnx", "torchscript", "exported_program", "safetensors", "json", "svg"}
_MODEL_FACTS = ("inputs", "outputs", "opset", "num_params", "macs", "macs_at", "unsupported", "layers", "graph_facts")
_DATASET_FACTS = ("fields", "splits", "num_classes")


@dataclass(frozen=True)
class Verdict:
    """What a child's outcome says, checked; `plain` is `outcome.json`."""

    plain: dict[str, Any]

    @property
    def status(self) -> str:
        """One of the statuses that end a row of this kind."""
        status: str = self.plain["status"]
        return status

    @property
    def warnings(self) -> list[str]:
        """At most a hundred, of bounded length."""
        return [str(w)[:2000] for w in self.plain.get("warnings") or []][:100]


def read_outcome(folder: Path, *, is_job: bool) -> Verdict | None:
    """The outcome in an attempt's folder; None where there is none, or none that makes sense."""
    path = folder / "outcome.json"
    try:
        if path.is_symlink() or path.stat().st_size > MAX_OUTCOME_BYTES:
            return None
        plain = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(plain, dict) or plain.get("status") not in _STATUSES[is_job]:
        return None
    return Verdict(plain)


def needs_another_try(ending: Ending) -> bool:
    """Whether the child died of something that was neither its own nor our doing."""
    if ending.reason == "never_started":
        return True
    code = ending.exit_code
    return ending.reason == "exited" and (code is None or code == LAUNCHER_LOST or (code < 0 and -code not in _CRASHES))


def error_of(ending: Ending, wall_seconds: float, *, is_job: bool) -> dict[str, Any]:
    """The error of a child that left no outcome; see `needs_another_try` for those that get another one."""
    if ending.reason == "time_limit":
        code = "time_limit" if is_job else "inspection_timeout"
        hint = "raise limits.wall_seconds, or ask for fewer epochs" if is_job else "is this the file that you meant?"
        return _error(code, f"stopped after {wall_seconds:g} seconds", "user", hint)
    if ending.reason == "out_of_memory":
        hint = "use a smaller batch_size or a smaller network, or a worker with more memory"
        return _error("out_of_memory", "the network and the data need more memory than one job may use", "user", hint)
    if ending.exit_code is not None and -ending.exit_code in _CRASHES:
        name = signal.Signals(-ending.exit_code).name
        detail = f"the network crashed the process that worked on it ({name})"
        return _error("engine_crashed", detail, "user", "check that the file loads and runs where it was made")
    return _error("internal_error", f"the engine ended with status {ending.exit_code}", "internal", "tell us the id")


def _error(code: str, detail: str, error_class: ErrorClass, hint: str) -> dict[str, Any]:
    return stored_error(code, detail, error_class=error_class, hint=hint)


def listed_files(folder: Path, verdict: Verdict) -> list[tuple[dict[str, str], Path]]:
    """The artifacts that the outcome lists and that are regular files of the folder's `output/`."""
    output, found = (folder / "output").resolve(), []
    for entry in verdict.plain.get("artifacts") or []:
        path = folder / str(entry.get("file", ""))
        is_ours = path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(output)
        is_named = _ARTIFACT_NAME.fullmatch(str(entry.get("name", ""))) is not None
        if is_ours and is_named and entry.get("kind") in _KINDS and entry.get("format") in _FORMATS:
            found.append((entry, path))
    return found


def keep(storage: Storage, path: Path, name: str, kind: str, file_format: str) -> Kept:
    """Hash a file and put it in storage; raises `InsufficientStorage`."""
    blob = storage.put_file(path)
    return Kept(name, kind, file_format, blob.sha256, blob.size_bytes)


def end_of_job(verdict: Verdict, artifacts: list[Kept], exit_code: int | None) -> End:
    """How a job's row ends."""
    values: dict[str, Any] = {"result": verdict.plain.get("result"), "warnings": verdict.warnings}
    if verdict.status == "succeeded":
        values["progress"] = 1.0
    return End(verdict.status, verdict.status, verdict.plain.get("error"), values, artifacts, exit_code)


def end_of_upload(verdict: Verdict, graph: Kept | None, *, is_model: bool) -> End:
    """How the row of an upload ends; `graph` is the network that inspection re-emitted."""
    facts = verdict.plain.get("facts") or {}
    names = _MODEL_FACTS if is_model else _DATASET_FACTS
    values: dict[str, Any] = {name: facts.get(name) for name in names} if verdict.status == "ready" else {}
    if graph is not None:
        values["graph_sha256"] = graph.sha256
    return End(verdict.status, verdict.status, verdict.plain.get("error"), values)
