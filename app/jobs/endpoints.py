"""`/v1/jobs`: order, list, follow, cancel, delete."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import KeyDep, Services, ServicesDep
from app.api.documentation import PROBLEMS, body_schema
from app.api.pagination import Page
from app.api.parameters import NoQuery, PageParameters, Paging, Waiting
from app.api.schemas import ListOf, answer_response, json_response
from app.api.watcher import Glance
from app.errors import BadRequest
from app.jobs import service
from app.jobs.event_stream import EventStream
from app.jobs.events import events_after
from app.jobs.ordering import order_job
from app.jobs.repository import get_job
from app.jobs.schemas import EventRead, JobCreate, JobRead, MetricPoint
from app.jobs.service import JobView
from app.jobs.states import TERMINAL

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)
FORM = {"model": "binary", "dataset": "binary", "spec": "string", "name": "string", "metadata": "string"}
_MAX_EVENT = 2**31 - 1


class JobListParameters(PageParameters):
    """Filters of the list."""

    status: Literal["queued", "running", "cancelling", "succeeded", "failed", "infeasible", "cancelled"] | None = None
    model: str | None = Field(default=None, max_length=64, description="Id of the model.")


@router.post(
    "",
    status_code=202,
    response_model=JobRead,
    summary="Order a compression",
    openapi_extra=body_schema(form=FORM, required=["model"], json=JobCreate),
)
async def create_job(request: Request, services: ServicesDep, key: KeyDep, waiting: Waiting) -> Response:
    """With ids as JSON, or with files in one line: `curl -F model=@model.onnx -F dataset=@data.npz -F spec=@spec.yaml`.

    The spec is JSON or YAML. Without one the network is pruned to half of its multiply-accumulates. What cannot work is
    answered here, with a pointer to the field. A job whose files are still being inspected waits in `queued`.
    """
    answer = await order_job(request, services, key)
    if not waiting.seconds:
        return answer_response(answer)
    view = await wait_for_end(services, answer.body["id"], waiting.seconds)
    return json_response(_shown(view), answer.status, answer.headers)


@router.get("", response_model=ListOf[JobRead], summary="List jobs, newest first")
async def list_jobs(services: ServicesDep, query: Annotated[JobListParameters, Query()]) -> Response:
    """A page of jobs."""
    request = query.request("jobs", query.status, query.model)
    page: Page[JobView] = await services.database.read(
        service.list_jobs, request, status=query.status, model_id=query.model
    )
    return json_response(ListOf[JobRead](data=[_shown(view) for view in page.data], next_cursor=page.next_cursor))


@router.get("/{job_id}", response_model=JobRead, summary="Look at a job")
async def read_job(services: ServicesDep, job_id: str, waiting: Waiting) -> Response:
    """With `wait`, answers as soon as the job ends."""
    return json_response(_shown(await wait_for_end(services, job_id, waiting.seconds)))


@router.post("/{job_id}/cancel", status_code=202, response_model=JobRead, summary="Cancel a job")
async def cancel_job(services: ServicesDep, job_id: str, _query: NoQuery) -> Response:
    """A running job ends in seconds and keeps its best checkpoint as an artifact, where one exists.

    200 for a job that is being cancelled already; 409 `job_already_terminal` for one that has ended otherwise.
    """
    view, is_new = await services.database.write(service.cancel_job, job_id)
    return json_response(_shown(view), 202 if is_new else 200)


@router.delete("/{job_id}", status_code=204, summary="Delete an ended job with its artifacts")
async def delete_job(services: ServicesDep, job_id: str, _query: NoQuery) -> Response:
    """409 `job_not_finished` for a job that has not ended."""
    await services.database.write(service.delete_job, job_id)
    return Response(status_code=204)


@router.get(
    "/{job_id}/events",
    response_class=Response,
    summary="Follow a job",
    responses={
        200: {
            "description": "Server-sent events until the job has ended; as JSON with `Accept: application/json`.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "object"}},
            },
        }
    },
)
async def follow_job(
    request: Request,
    services: ServicesDep,
    job_id: str,
    paging: Paging,
    last_event_id: Annotated[str | None, Header(description="Go on after this id.")] = None,
) -> Response:
    """`status`, `progress`, `metric` and `log` events; their ids count up within the job. `curl -N` shows them as they come."""
    after = _after(last_event_id)
    await services.database.read(get_job, job_id)
    if _prefers_json(request.headers.get("accept", "")):
        return await _events_as_json(services, job_id, after, paging)
    return EventStream(services, request.app.state.event_pages, job_id, after)


@router.get("/{job_id}/metrics", response_model=dict[str, list[MetricPoint]], summary="A job's series")
async def read_metrics(services: ServicesDep, job_id: str, _query: NoQuery) -> Response:
    """All points by name, in the order in which they were measured."""
    series = await services.database.read(service.read_metrics, job_id)
    body = ",".join(
        f"{_json_text(name)}:[{','.join(MetricPoint.of(row).model_dump_json() for row in rows)}]"
        for name, rows in series.items()
    )
    return Response("{" + body + "}", media_type="application/json")


async def wait_for_end(services: Services, job_id: str, seconds: float) -> JobView:
    """The job as soon as it has ended, or as it is after `seconds`."""
    view = await services.database.read(service.read_job, job_id)
    if seconds and view.row.status not in TERMINAL:
        await services.watcher.wait(job_id, _has_ended, seconds)
        view = await services.database.read(service.read_job, job_id)
    return view


def _has_ended(glance: Glance | None) -> bool:
    return glance is None or glance.status in TERMINAL


def _shown(view: JobView) -> JobRead:
    return JobRead.of(view.row, view.queue_position)


def _after(last_event_id: str | None) -> int:
    text = (last_event_id or "").strip()
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 40):
        raise BadRequest("Last-Event-ID is the id of an event, a whole number", code="invalid_last_event_id")
    return min(int(text or 0), _MAX_EVENT)


def _prefers_json(accept: str) -> bool:
    kinds = [part.split(";", 1)[0].strip().lower() for part in accept.split(",")]
    return "application/json" in kinds and "text/event-stream" not in kinds


async def _events_as_json(services: Services, job_id: str, after: int, paging: PageParameters) -> Response:
    request = paging.request("events", job_id)
    if (key := request.after()) is not None:
        after = max(after, int(key[0]))
    rows: Any = await services.database.read(events_after, job_id, after, request.limit + 1)
    page = request.page(rows, lambda row: [row.id])
    return json_response(ListOf[EventRead](data=[EventRead.of(row) for row in page.data], next_cursor=page.next_cursor))


def _json_text(text: str) -> str:
    return json.dumps(text)
