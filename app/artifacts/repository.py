"""Queries on artifacts."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest
from app.tables import ArtifactRow


def page_of_artifacts(session: Session, job_id: str, request: PageRequest) -> Page[ArtifactRow]:
    """A job's artifacts by name."""
    statement = select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)
    if key := request.after():
        statement = statement.where(ArtifactRow.name > str(key[0]))
    return request.page(list(session.scalars(statement.limit(request.limit + 1))), lambda row: [row.name])


def find_artifact(session: Session, job_id: str, name: str) -> ArtifactRow | None:
    """An artifact by its job and name."""
    return session.scalars(
        select(ArtifactRow).where(ArtifactRow.job_id == job_id, ArtifactRow.name == name)
    ).one_or_none()


def models_of(session: Session, job_id: str) -> list[ArtifactRow]:
    """The networks that a job made, by name."""
    statement = select(ArtifactRow).where(ArtifactRow.job_id == job_id, ArtifactRow.kind == "model")
    return list(session.scalars(statement.order_by(ArtifactRow.name)))
