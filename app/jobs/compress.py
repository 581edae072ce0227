"""`/v1/compress`: a file in, a file out, one curl line."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.dependencies import KeyDep, ServicesDep
from app.api.documentation import PROBLEMS, body_schema
from app.api.downloads import Download, download
from app.api.error_handlers import problem
from app.api.parameters import MAX_WAIT_SECONDS, WaitParameters
from app.artifacts.service import main_network
from app.jobs.endpoints import FORM, wait_for_end
from app.jobs.ordering import order_job
from app.jobs.repository import get_job
from app.jobs.states import TERMINAL
from app.tables import ArtifactRow, JobRow, ModelRow

router = APIRouter(prefix="/v1/compress", tags=["jobs"], responses=PROBLEMS)


class CompressParameters(WaitParameters):
    """How long to hold the answer."""

    wait: float = Field(default=MAX_WAIT_SECONDS, ge=0, description="Seconds to wait for the network, at most 60.")


@router.post(
    "",
    response_class=Response,
    summary="File to file",
    responses={
        200: {"description": "The compressed network.", "content": {"application/octet-stream": {}}},
        303: {"description": "It takes longer: `Location` is the job, and its artifacts are there when it has ended."},
    },
    openapi_extra=body_schema(form=FORM, required=["model"]),
)
async def compress(
    request: Request, services: ServicesDep, key: KeyDep, query: Annotated[CompressParameters, Query()]
) -> Response:
    """`curl -F model=@model.onnx -F dataset=@data.npz -o small.onnx -L --fail-with-body URL/v1/compress`.

    Answers with the network in the format that came in, `Location` naming the job and its report. A job that ends otherwise
    answers its problem: 422 where this input will never work, else 503.
    """
    answer = await order_job(request, services, key, for_network=True)
    job_id = answer.body["id"]
    location = {"Location": f"/v1/jobs/{job_id}"}
    view = await wait_for_end(services, job_id, query.seconds)
    if view.row.status not in TERMINAL:
        return Response(status_code=303, headers=location)
    if view.row.status != "succeeded":
        return _failure(view.row, location)
    made = await services.database.read(_network_of, job_id)
    return await download(request, services.storage, Download(made.sha256, made.name, made.format), location)


def _network_of(session: Session, job_id: str) -> ArtifactRow:
    job = get_job(session, job_id)
    model = session.get_one(ModelRow, job.model_id)
    return main_network(session, job, model.format)


def _failure(job: JobRow, location: dict[str, str]) -> Response:
    error = job.error or {"code": "job_cancelled", "detail": "the job was cancelled", "hint": None, "class": "user"}
    is_user = error.get("class") == "user"
    headers = location if is_user else {**location, "Retry-After": "10"}
    extra = {"job": f"/v1/jobs/{job.id}", "class": error.get("class")}
    return problem(
        422 if is_user else 503, error["code"], error["detail"], hint=error.get("hint"), headers=headers, extra=extra
    )
