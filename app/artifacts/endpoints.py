"""`/v1/jobs/{id}/artifacts`: what a job made."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.dependencies import ServicesDep
from app.api.documentation import PROBLEMS
from app.api.downloads import Download, download
from app.api.parameters import Paging
from app.api.schemas import ListOf, json_response
from app.artifacts import service
from app.artifacts.schemas import ArtifactRead

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"], responses=PROBLEMS)


@router.get("", response_model=ListOf[ArtifactRead], summary="List what a job made, by name")
async def list_artifacts(services: ServicesDep, job_id: str, paging: Paging) -> Response:
    """A failed or cancelled job lists what was kept."""
    page = await services.database.read(service.list_artifacts, job_id, paging.request("artifacts", job_id))
    rows = [ArtifactRead.of(row) for row in page.data]
    return json_response(ListOf[ArtifactRead](data=rows, next_cursor=page.next_cursor))


@router.head("/{name}", include_in_schema=False)
@router.get("/{name}", response_class=Response, summary="Download a file")
async def download_artifact(request: Request, services: ServicesDep, job_id: str, name: str) -> Response:
    """`curl -C - -o FILE URL` resumes. `ETag` and `Repr-Digest` are of the whole file."""
    row = await services.database.read(service.read_artifact, job_id, name)
    return await download(request, services.storage, Download(row.sha256, row.name, row.format))
