"""Jobs of the engine without a service around it: a network and a data set in, the outcome and its files out.

The same entry that a worker calls, with the requests that a worker writes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.spec.checks import DatasetFacts, ModelFacts, complete_spec
from app.spec.schema import Spec
from worker.compressor.entry import run

_FORMATS = {".onnx": "onnx", ".pt": "torchscript"}


@dataclass(frozen=True)
class Finished:
    """What a job left: its outcome, and the folder with its artifacts."""

    outcome: dict[str, Any]
    output: Path

    @property
    def compressed(self) -> dict[str, Any]:
        """The figures of the result, computed from its bytes: also of a job that failed because its network is worth nothing."""
        if not self.outcome["result"]:
            raise RuntimeError(str(self.outcome["error"]))
        return dict(self.outcome["result"]["compressed"])

    @property
    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "report.json").read_text()))


def compress(
    folder: Path, model: Path, data: Path | None, spec: dict[str, Any], cache: Path | None = None, threads: int = 1
) -> Finished:
    """One job in a folder that does not exist yet; `cache` keeps what is known of the original for later jobs."""
    form, source = _FORMATS[model.suffix], _source(model)
    fields = None
    if data is not None:
        told = {"file": str(data), "format": "npz", "sha256": _sha256(data)}
        fields = DatasetFacts(_ready(folder / "data", kind="inspect_dataset", dataset=told)["fields"])
    asked = Spec.model_validate(spec)
    signature = None
    if form == "torchscript":
        completed = complete_spec(asked, ModelFacts(form, None), fields)
        signature = [entry.model_dump(mode="json") for entry in completed.inputs or ()]
    inspected = {"kind": "inspect_model", "source": {**source, "file": str(model)}, "signature": signature}
    facts = _ready(folder / "model", **inspected)
    (folder / "graph.json").write_text(json.dumps(facts["graph_facts"]))
    outcome = _run(
        folder / "job",
        kind="compress",
        source=source,
        signature=signature,
        graph={"file": str(folder / "model/output/graph.onnx"), "facts": str(folder / "graph.json")},
        dataset={"file": str(data), "format": "npz", "sha256": _sha256(data)} if data else None,
        spec=complete_spec(asked, ModelFacts(form, facts["inputs"]), fields).as_json(),
        checkpoints=str(folder / "checkpoints"),
        baseline_cache=str(cache) if cache else None,
        threads=threads,
    )
    return Finished(outcome, folder / "job/output")


def _ready(folder: Path, **request: Any) -> dict[str, Any]:
    outcome = _run(folder, **request)
    if outcome["status"] != "ready":
        raise RuntimeError(str(outcome["error"]))
    return dict(outcome["facts"])


def _run(folder: Path, **request: Any) -> dict[str, Any]:
    folder.mkdir(parents=True)
    plain = {"id": "job_1", "attempt": 1, "threads": 1, "device": "cpu", **request}
    (folder / "request.json").write_text(json.dumps(plain))
    run(folder, lambda event: None, lambda: False)
    return dict(json.loads((folder / "outcome.json").read_text()))


def _source(model: Path) -> dict[str, Any]:
    facts = {"sha256": _sha256(model), "size_bytes": model.stat().st_size, "name": model.name}
    return {"file": None, "format": _FORMATS[model.suffix], **facts}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
