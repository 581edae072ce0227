"""Queries on jobs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, false, func, or_, select
from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest, created_key, newest_first
from app.errors import NotFound
from app.ids import is_id
from app.tables import TENANT, JobRow, MetricRow


def get_job(session: Session, job_id: str) -> JobRow:
    """A job; raises `NotFound`, the same for a foreign, a deleted and an impossible id."""
    row = session.get(JobRow, job_id, populate_existing=True) if is_id(job_id, "job") else None
    if row is None or row.tenant != TENANT:
        raise NotFound("no such job")
    return row


def page_of_jobs(session: Session, request: PageRequest, *, status: str | None, model_id: str | None) -> Page[JobRow]:
    """A tenant's jobs, newest first; `status` as it is shown."""
    statement = select(JobRow).where(JobRow.tenant == TENANT)
    if status in ("running", "cancelling"):
        is_cancelling = JobRow.cancel_requested if status == "cancelling" else ~JobRow.cancel_requested
        statement = statement.where(JobRow.status == "running", is_cancelling)
    elif status is not None:
        statement = statement.where(JobRow.status == status)
    if model_id is not None:
        statement = statement.where(JobRow.model_id == model_id if is_id(model_id, "mdl") else false())
    return request.page(list(session.scalars(newest_first(statement, JobRow, request))), created_key)


def queue_positions(session: Session, rows: Sequence[JobRow]) -> dict[str, int]:
    """For each queued job of `rows` its place in the whole queue, from 1."""
    queued = [row for row in rows if row.status == "queued"]
    if not queued:
        return {}
    last = max(queued, key=lambda row: (row.created_at, row.id))
    is_older = or_(
        JobRow.created_at < last.created_at, and_(JobRow.created_at == last.created_at, JobRow.id <= last.id)
    )
    in_queue = (JobRow.tenant == TENANT, JobRow.status == "queued", is_older)
    if len(queued) == 1:
        return {last.id: session.scalar(select(func.count()).where(*in_queue)) or 0}
    place = func.row_number().over(order_by=(JobRow.created_at, JobRow.id)).label("place")
    places = select(JobRow.id, place).where(*in_queue).subquery()
    found = session.execute(select(places.c.id, places.c.place).where(places.c.id.in_([row.id for row in queued])))
    return {row.id: row.place for row in found}


def metrics_of(session: Session, job_id: str) -> list[MetricRow]:
    """All points of a job's series, in the order in which they were written."""
    return list(session.scalars(select(MetricRow).where(MetricRow.job_id == job_id).order_by(MetricRow.id)))
