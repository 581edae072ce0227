"""What can be done with artifacts. Every function works in the caller's transaction."""

from __future__ import annotations

import re

from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest
from app.artifacts.repository import find_artifact, models_of, page_of_artifacts
from app.errors import Conflict, NotFound
from app.jobs.repository import get_job
from app.jobs.states import TERMINAL
from app.tables import ArtifactRow, JobRow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def list_artifacts(session: Session, job_id: str, request: PageRequest) -> Page[ArtifactRow]:
    """A page of a job's artifacts; empty while it runs. Raises `NotFound` for an unknown job."""
    return page_of_artifacts(session, get_job(session, job_id).id, request)


def read_artifact(session: Session, job_id: str, name: str) -> ArtifactRow:
    """An artifact by name; raises `NotFound`, or `Conflict` (`job_not_finished`) while the job may still make it."""
    job = get_job(session, job_id)
    row = find_artifact(session, job.id, name) if _NAME.fullmatch(name) else None
    if row is None and job.status not in TERMINAL:
        raise Conflict("the job has not ended yet", code="job_not_finished", hint=f"GET /v1/jobs/{job.id}?wait=60")
    if row is None:
        raise NotFound("the job has no such artifact", hint=f"GET /v1/jobs/{job.id}/artifacts lists them")
    return row


def main_network(session: Session, job: JobRow, model_format: str) -> ArtifactRow:
    """The network that a job was for: in the format that came in where it was made, else in the first that was asked for."""
    made = {row.format: row for row in models_of(session, job.id)}
    for wanted in (model_format, *(job.spec.get("outputs") or ()), *made):
        if wanted in made:
            return made[wanted]
    raise NotFound("the job kept no network")
