"""What the poller asks the database: one small query per table that somebody waits on."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api.watcher import Glance
from app.tables import DatasetRow, JobRow, ModelRow

_BATCH = 500


def look(session: Session, item_ids: Collection[str]) -> dict[str, Glance]:
    """Status and last event of jobs, models and data sets by id; rows that are gone are missing."""
    seen: dict[str, Glance] = {}
    jobs = [i for i in item_ids if i.startswith("job_")]
    for batch in _batches(jobs):
        for row in session.execute(select(JobRow.id, JobRow.status, JobRow.last_event).where(JobRow.id.in_(batch))):
            seen[row.id] = Glance(row.status, row.last_event)
    for prefix, table in (("mdl_", ModelRow), ("dst_", DatasetRow)):
        for batch in _batches([i for i in item_ids if i.startswith(prefix)]):
            for upload in session.execute(select(table.id, table.status).where(table.id.in_(batch))):
                seen[upload.id] = Glance(upload.status)
    return seen


def _batches(ids: list[str]) -> list[list[str]]:
    return [ids[i : i + _BATCH] for i in range(0, len(ids), _BATCH)]
