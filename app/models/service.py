"""What can be done with models. Every function works in the caller's transaction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest
from app.api.uploaded_rows import StoredFile, add_or_find, delete_upload, get_upload, shown_status
from app.artifacts.repository import find_artifact
from app.errors import Conflict, NotFound, Unprocessable
from app.ids import is_id, new_id
from app.models.formats import EXPORTED_PROGRAM, ONNX, TORCHSCRIPT
from app.models.repository import page_of_models
from app.tables import TENANT, JobRow, ModelRow

Signature = list[dict[str, Any]]


def register_model(session: Session, file: StoredFile, signature: Signature | None) -> tuple[ModelRow, bool]:
    """The model of these bytes and this signature, and whether it is new (and has to be inspected)."""
    key = signature_key(signature)
    row = ModelRow(
        id=new_id("mdl"), tenant=TENANT, status="queued", name=file.name, format=file.format, sha256=file.sha256,
        size_bytes=file.size_bytes, signature=signature, signature_key=key,
    )  # fmt: skip
    same = (ModelRow.tenant == TENANT) & (ModelRow.sha256 == file.sha256) & (ModelRow.signature_key == key)
    return add_or_find(session, row, same)


def register_artifact(
    session: Session, job_id: str, artifact_name: str, name: str | None, touch: Callable[[str], bool]
) -> tuple[ModelRow, bool]:
    """A job's output as a model with its parent. `touch` keeps the bytes while the new row is being written.

    Raises `NotFound` for an unknown job or artifact, `Unprocessable` (`not_a_model`) for a report.
    """
    job = session.get(JobRow, job_id) if is_id(job_id, "job") else None
    artifact = find_artifact(session, job_id, artifact_name) if job and job.tenant == TENANT else None
    if job is None or artifact is None or not touch(artifact.sha256):
        raise NotFound("no such job, or it has no such artifact")
    if artifact.format not in (ONNX, TORCHSCRIPT, EXPORTED_PROGRAM):
        raise Unprocessable(f"{artifact.name} is not a network", code="not_a_model")
    # TorchScript does not carry its signature: the job knows it.
    signature = job.spec.get("inputs") if artifact.format == TORCHSCRIPT else None
    file = StoredFile(name or artifact.name, artifact.format, artifact.sha256, artifact.size_bytes)
    row, is_new = register_model(session, file, signature)
    row.parent = row.parent or {"job_id": job.id, "model_id": job.model_id}
    return row, is_new


def read_model(session: Session, model_id: str) -> ModelRow:
    """A model; raises `NotFound`."""
    return get_upload(session, ModelRow, model_id)


def list_models(session: Session, request: PageRequest) -> Page[ModelRow]:
    """A page of models, newest first."""
    return page_of_models(session, request)


def list_layers(session: Session, model_id: str, request: PageRequest) -> Page[dict[str, Any]]:
    """A page of a model's layers in graph order; raises `Conflict` where inspection has found none yet."""
    row = get_upload(session, ModelRow, model_id)
    if row.status != "ready":
        raise Conflict(
            f"the model is {shown_status(row.status)}", code="model_not_ready", hint="wait until it is ready"
        )
    if row.layers is None:
        raise Conflict(
            "a TorchScript file does not say what its inputs are, and without them its layers are not known",
            code="signature_needed",
            hint="upload it again with `inputs`",
        )
    after = request.after()
    start = int(after[0]) if after else 0
    rows = [{**layer, "_row": i} for i, layer in enumerate(row.layers[start : start + request.limit + 1], start + 1)]
    page = request.page(rows, lambda layer: [layer["_row"]])
    return Page([{k: v for k, v in layer.items() if k != "_row"} for layer in page.data], page.next_cursor)


def delete_model(session: Session, model_id: str) -> None:
    """Delete a model; raises `NotFound`, or `Conflict` (`in_use`)."""
    delete_upload(session, ModelRow, model_id)


def signature_key(signature: Signature | None) -> str:
    """What tells signatures apart; empty without one."""
    return hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest() if signature else ""
