"""What can be done with jobs. Every function works in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest
from app.api.uploaded_rows import get_upload
from app.errors import Conflict, FieldError, NotFound
from app.ids import new_id
from app.jobs.events import append_event
from app.jobs.repository import get_job, metrics_of, page_of_jobs, queue_positions
from app.jobs.states import TERMINAL
from app.spec.checks import DatasetFacts, ModelFacts, complete_spec
from app.spec.schema import Spec
from app.tables import TENANT, DatasetRow, JobRow, MetricRow, ModelRow, utc_now


@dataclass(frozen=True)
class JobOrder:
    """What a job is to do, checked as far as that is possible without the model and the data."""

    spec: Spec
    name: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class JobView:
    """A job's row and its place in the queue (None unless it is queued)."""

    row: JobRow
    queue_position: int | None


def find_input(session: Session, noun: Literal["model", "dataset"], upload_id: str) -> ModelRow | DatasetRow:
    """The model or data set that a job names, kept from being deleted; raises `NotFound` that points at the field."""
    try:
        if noun == "model":
            return get_upload(session, ModelRow, upload_id, lock=True)
        return get_upload(session, DatasetRow, upload_id, lock=True)
    except NotFound as error:
        raise NotFound(error.detail, errors=(FieldError(f"/{noun}", error.code, error.detail),)) from None


def create_job(session: Session, order: JobOrder, model: ModelRow, dataset: DatasetRow | None) -> JobView:
    """A queued job with its first event.

    Raises `Conflict` (`model_not_ready`, `dataset_not_ready`) for rejected uploads and `Unprocessable` where the spec, the
    model and the data do not fit. What is still being inspected is checked when the worker claims the job.
    """
    for upload, noun in ((model, "model"), (dataset, "dataset")):
        if upload is not None and upload.status == "rejected":
            why = (upload.error or {}).get("detail", "it was rejected")
            raise Conflict(f"the {noun} was rejected: {why}", code=f"{noun}_not_ready", hint=f"send another {noun}")
    completed = _completed(order.spec, model, dataset)
    row = JobRow(
        id=new_id("job"), tenant=TENANT, status="queued", name=order.name, labels=order.metadata or {},
        model_id=model.id, dataset_id=dataset.id if dataset else None, spec=(completed or order.spec).as_json(),
        asked_spec=None if completed else order.spec.as_asked(),
    )  # fmt: skip
    session.add(row)
    session.flush()
    append_event(session, row.id, "status", {"status": "queued", "attempt": 0})
    session.refresh(row)
    return _view(session, row)


def read_job(session: Session, job_id: str) -> JobView:
    """A job; raises `NotFound`."""
    return _view(session, get_job(session, job_id))


def list_jobs(session: Session, request: PageRequest, *, status: str | None, model_id: str | None) -> Page[JobView]:
    """A page of jobs, newest first."""
    page = page_of_jobs(session, request, status=status, model_id=model_id)
    positions = queue_positions(session, page.data)
    return Page([JobView(row, positions.get(row.id)) for row in page.data], page.next_cursor)


def cancel_job(session: Session, job_id: str) -> tuple[JobView, bool]:
    """Ask a job to end; whether anything changed (a second request for it changes nothing).

    A queued job is cancelled at once, a running one by its worker. Each step is conditional on the status, so that a job
    which ends at the same moment keeps its end. Raises `Conflict` (`job_already_terminal`) for one that ended otherwise.
    """
    row = get_job(session, job_id)
    now, status = utc_now(), row.status
    if _change(session, job_id, "queued", status="cancelled", cancel_requested=True, finished_at=now, eta_seconds=None):
        append_event(session, job_id, "status", {"status": "cancelled", "attempt": row.attempt})
    elif _change(session, job_id, "running", cancel_requested=True):
        append_event(session, job_id, "status", {"status": "cancelling", "attempt": row.attempt})
    else:
        view = read_job(session, job_id)
        if view.row.status in TERMINAL and view.row.status != "cancelled":
            raise Conflict(f"the job has {view.row.status} already", code="job_already_terminal")
        return view, False
    return read_job(session, job_id), status in ("queued", "running")


def delete_job(session: Session, job_id: str) -> None:
    """Delete an ended job with its events, metrics and artifacts; raises `Conflict` (`job_not_finished`) for others.

    The artifacts' bytes become garbage where nothing else refers to them.
    """
    get_job(session, job_id)
    gone = session.execute(delete(JobRow).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL)).returning(JobRow.id))
    if gone.first() is None:
        raise Conflict(
            "the job has not ended yet", code="job_not_finished", hint=f"POST /v1/jobs/{job_id}/cancel first"
        )


def read_metrics(session: Session, job_id: str) -> dict[str, list[MetricRow]]:
    """A job's series by name; raises `NotFound`."""
    series: dict[str, list[MetricRow]] = {}
    for row in metrics_of(session, get_job(session, job_id).id):
        series.setdefault(row.name, []).append(row)
    return series


def is_ready(model: ModelRow, dataset: DatasetRow | None) -> bool:
    """Whether a worker could begin; else the end of the inspection sends the job."""
    return model.status == "ready" and (dataset is None or dataset.status == "ready")


def _view(session: Session, row: JobRow) -> JobView:
    return JobView(row, queue_positions(session, [row]).get(row.id))


def _change(session: Session, job_id: str, expected: str, **values: Any) -> bool:
    statement = update(JobRow).where(JobRow.id == job_id, JobRow.status == expected)
    if set(values) == {"cancel_requested"}:
        statement = statement.where(~JobRow.cancel_requested)
    return session.execute(statement.values(**values).returning(JobRow.id)).first() is not None


def _completed(spec: Spec, model: ModelRow, dataset: DatasetRow | None) -> Spec | None:
    """The completed spec where inspection has told what there is; None, and checked as far as can be, where not yet."""
    has_no_signature = model.format == "torchscript" and not model.signature
    is_model_known = model.status == "ready" or has_no_signature
    facts = ModelFacts(model.format, model.inputs if model.status == "ready" else None)
    if dataset is None:
        if is_model_known:
            return complete_spec(spec, facts, None)
        # Whatever the inputs turn out to be, a step that needs data has none: the answer does not have to wait.
        complete_spec(spec, ModelFacts(model.format, [{"name": "x", "dtype": "float32", "shape": ["batch"]}]), None)
    elif is_model_known and dataset.status == "ready":
        return complete_spec(spec, facts, DatasetFacts(dataset.fields or []))
    return None
