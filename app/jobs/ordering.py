"""From a request to a job: JSON with ids, or a form with files; the same for `/v1/jobs` and `/v1/compress`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request
from sqlalchemy.orm import Session

from app.api.dependencies import Services
from app.api.forms import Form, is_multipart, missing_file, read_form
from app.api.idempotency import Answer, IdempotencyKey
from app.api.json_bodies import check_plain, is_json, parse_json, read_json, unsupported_media, validate
from app.api.schemas import plain
from app.api.uploaded_rows import StoredFile
from app.datasets.endpoints import stored_dataset
from app.datasets.service import register_dataset
from app.errors import FieldError, Unprocessable
from app.jobs import service
from app.jobs.schemas import JobCreate, JobRead, MetadataField
from app.jobs.service import JobOrder
from app.models.endpoints import stored_model
from app.models.service import register_model
from app.spec.reading import parse_yaml, read_spec
from app.tables import DatasetRow, ModelRow

_RETRY_AFTER = "1"
_FILES = ("model", "dataset")
_TEXTS = ("model", "dataset", "spec", "name", "metadata")

Source = StoredFile | str | None
"""A file that came with the request, or the id of one that came before."""


async def order_job(
    request: Request, services: Services, key: IdempotencyKey | None, *, for_network: bool = False
) -> Answer:
    """Read, check, store and queue a job; the answer is 202 with the job. A worker is told before this returns.

    `for_network`: files come with the request, and a network has to come out.
    """
    with services.keys.hold(key):
        if not for_network and is_json(request):
            body = await read_json(request, JobCreate)
            order = JobOrder(read_spec(body.spec), _name(body.name), body.metadata)
            answer = await services.database.write(_create, order, body.model, body.dataset, key, body.model_dump())
        elif is_multipart(request):
            answer = await _order_from_form(request, services, key, for_network=for_network)
        else:
            raise unsupported_media(*([] if for_network else ["application/json"]), "multipart/form-data")
        await services.wake(answer)
        return answer


async def _order_from_form(
    request: Request, services: Services, key: IdempotencyKey | None, *, for_network: bool
) -> Answer:
    async with services.staging() as staging:
        form = await read_form(request, staging, files=_FILES, texts=_TEXTS)
        spec = form.texts.get("spec", b"")
        order = JobOrder(read_spec(_spec_value(spec)), _name(form.text("name")), _metadata(form))
        if for_network and not order.spec.makes_network:
            error = FieldError("/spec/steps", "no_network", "these steps make no network that could be sent back")
            raise Unprocessable.of([error], hint="order it as a job: POST /v1/jobs; its artifacts hold what was found")
        model = await stored_model(form.files["model"]) if "model" in form.files else _given_id(form, "model")
        if model is None:
            raise missing_file("model")
        dataset = await stored_dataset(form.files["dataset"]) if "dataset" in form.files else _given_id(form, "dataset")
        await staging.commit()
        return await services.database.write(_create, order, model, dataset, key, form.fingerprint())


def _create(
    session: Session, order: JobOrder, model: Source, dataset: Source, key: IdempotencyKey | None, sent: Any
) -> Answer:
    def produce() -> Answer:
        wake: list[str] = []
        model_row = _row(session, model, wake, "model")
        dataset_row = _row(session, dataset, wake, "dataset") if dataset is not None else None
        view = service.create_job(session, order, model_row, dataset_row)
        if service.is_ready(model_row, dataset_row):
            wake.append(view.row.id)
        headers = {"Location": f"/v1/jobs/{view.row.id}", "Retry-After": _RETRY_AFTER}
        return Answer(202, plain(JobRead.of(view.row, view.queue_position)), headers, tuple(wake))

    return key.run(session, sent, produce) if key else produce()


def _row(session: Session, source: Source, wake: list[str], noun: Literal["model", "dataset"]) -> Any:
    if not isinstance(source, StoredFile):
        return service.find_input(session, noun, source or "")
    row: ModelRow | DatasetRow
    row, is_new = register_model(session, source, None) if noun == "model" else register_dataset(session, source)
    if is_new:
        wake.append(row.id)
    return row


def _spec_value(blob: bytes) -> Any:
    if not blob.strip():
        return None
    value = parse_json(blob) if blob.lstrip()[:1] == b"{" else parse_yaml(blob)
    check_plain(value)
    return value


def _metadata(form: Form) -> dict[str, Any]:
    text = form.text("metadata")
    return validate({"metadata": parse_json(text)}, MetadataField).metadata if text and text.strip() else {}


def _name(text: str | None) -> str | None:
    if text is not None and len(text) > 255:
        raise Unprocessable.of([FieldError("/name", "too_long", "name: at most 255 characters")])
    return text.strip() or None if text is not None else None


def _given_id(form: Form, field: str) -> str | None:
    text = form.text(field)
    if text is not None and len(text) > 64:
        hint = f"send it as a file: curl -F {field}=@PATH"
        raise Unprocessable.of([FieldError(f"/{field}", "file_needed", f"{field} is a file or an id")], hint=hint)
    return text.strip() if text and text.strip() else None
