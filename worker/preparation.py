"""What an attempt is to do: its rows read once, its spec completed, its folder filled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.errors import stored_error
from app.settings import Settings
from app.spec.checks import DatasetFacts, ModelFacts, complete_spec
from app.spec.schema import Spec
from app.storage.interface import Storage
from app.tables import DatasetRow, JobRow, ModelRow
from worker.folder import WorkFolder, put_blob, write_request
from worker.lease import Claim

INSPECTION_SECONDS = 120.0
_SUFFIXES = {"onnx": "onnx", "torchscript": "pt", "exported_program": "pt2", "npz": "npz", "safetensors": "safetensors"}


class NotRunnable(Exception):
    """The job ends here with `error`: its model or data set was rejected, or is not there any more."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["detail"])
        self.error = error


@dataclass
class Task:
    """An attempt's rows, detached from any session. `spec` is there for jobs alone, completed."""

    claim: Claim
    model: ModelRow | None = None
    dataset: DatasetRow | None = None
    spec: dict[str, Any] | None = None
    source: dict[str, Any] | None = field(default=None)

    @property
    def wall_seconds(self) -> float:
        """How long the engine may take."""
        return float(self.spec["limits"]["wall_seconds"]) if self.spec else INSPECTION_SECONDS

    @property
    def needs_conversion(self) -> bool:
        """A TorchScript file whose signature came with the job: its graph is made in the job's own attempt."""
        return self.spec is not None and self.model is not None and self.model.graph_sha256 is None


def read_task(session: Session, claim: Claim) -> Task:
    """The rows of a claim; completes and stores a job's spec. Raises `NotRunnable`, or `Unprocessable` from the spec."""
    if claim.table is ModelRow:
        return Task(claim, model=session.get_one(ModelRow, claim.item_id))
    if claim.table is DatasetRow:
        return Task(claim, dataset=session.get_one(DatasetRow, claim.item_id))
    job = session.get_one(JobRow, claim.item_id)
    model = session.get_one(ModelRow, job.model_id)
    dataset = session.get_one(DatasetRow, job.dataset_id) if job.dataset_id else None
    for row, noun in ((model, "model"), (dataset, "data set")):
        _check_upload(row, noun)
    spec = job.spec
    if job.asked_spec is not None:
        facts = DatasetFacts(dataset.fields or []) if dataset else None
        asked = Spec.model_validate(job.asked_spec)
        spec = complete_spec(asked, ModelFacts(model.format, model.inputs), facts).as_json()
        session.execute(update(JobRow).where(*claim.holds()).values(spec=spec, asked_spec=None))
    return Task(claim, model, dataset, spec)


def _check_upload(row: ModelRow | DatasetRow | None, noun: str) -> None:
    if row is None or row.status == "ready":
        return
    if row.status == "rejected" and row.error:
        raise NotRunnable({**row.error, "detail": f"the {noun} was rejected: {row.error['detail']}"})
    detail = f"the {noun} is not there any more"
    raise NotRunnable(stored_error("not_found", detail, error_class="user", hint="upload it again"))


def fill_folder(folder: WorkFolder, task: Task, settings: Settings, storage: Storage) -> None:
    """Links or copies the blobs in and writes `request.json`; a job's graph comes from the model's inspection."""
    request = _request(task, settings)
    if task.spec is None:
        _add_source(folder.path, task, storage, request)
    else:
        request |= {
            "spec": task.spec,
            "checkpoints": str(folder.checkpoints),
            "baseline_cache": str(_cache(task, settings)),
        }
        if task.model is not None and task.model.graph_sha256:
            put_blob(storage, task.model.graph_sha256, folder.path / "input/graph.onnx")
            (folder.path / "input/graph.json").write_text(json.dumps(task.model.graph_facts))
        request["graph"] = {"file": "input/graph.onnx", "facts": "input/graph.json"}
    if task.dataset is not None:
        _add_dataset(folder.path, task.dataset, storage, request, as_copy=task.spec is None)
    write_request(folder.path, request)


def fill_conversion(path: Path, task: Task, settings: Settings, storage: Storage) -> None:
    """The folder of the inspection that a job begins with, in the job's own: it has the signature now."""
    assert task.spec is not None
    request = _request(task, settings) | {"kind": "inspect_model", "signature": task.spec["inputs"]}
    _add_source(path, task, storage, request)
    write_request(path, request)


def _request(task: Task, settings: Settings) -> dict[str, Any]:
    claim, model = task.claim, task.model
    kind = "compress" if claim.is_job else "inspect_model" if model is not None else "inspect_dataset"
    source = None
    if model is not None:
        facts = {"format": model.format, "sha256": model.sha256, "size_bytes": model.size_bytes, "name": model.name}
        source = {"file": None} | facts
    return {
        "kind": kind,
        "id": claim.item_id,
        "attempt": claim.attempt,
        "threads": settings.threads_per_job,
        "device": settings.device,
        "source": source,
        "signature": model.signature if model is not None else None,
        "graph": None,
        "dataset": None,
        "spec": None,
        "checkpoints": None,
        "baseline_cache": None,
    }


def _add_source(path: Path, task: Task, storage: Storage, request: dict[str, Any]) -> None:
    if task.model is not None:
        name = f"input/source.{_SUFFIXES[task.model.format]}"
        # A copy: a TorchScript file can write to whatever it can open while it is loaded.
        put_blob(storage, task.model.sha256, path / name, as_copy=True)
        request["source"]["file"] = name


def _add_dataset(path: Path, dataset: DatasetRow, storage: Storage, request: dict[str, Any], *, as_copy: bool) -> None:
    name = f"input/data.{_SUFFIXES[dataset.format]}"
    put_blob(storage, dataset.sha256, path / name, as_copy=as_copy)
    request["dataset"] = {"file": name, "format": dataset.format, "sha256": dataset.sha256}


def _cache(task: Task, settings: Settings) -> Path:
    """Where the original's own figures are kept, by everything that they depend on."""
    assert task.model is not None and task.spec is not None
    asked = {key: task.spec.get(key) for key in ("inputs", "task", "preprocess", "evaluation", "seed")}
    content = [task.model.sha256, task.dataset.sha256 if task.dataset else None, asked, settings.device]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    folder = settings.data_dir.resolve() / "cache"
    folder.mkdir(exist_ok=True)
    return folder / f"baseline-{digest}.json"
