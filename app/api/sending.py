"""The mark that the broker has taken a message; what lacks it is sent again by the reaper."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.tables import DatasetRow, JobRow, ModelRow, utc_now

_TABLES: dict[str, type[JobRow] | type[ModelRow] | type[DatasetRow]] = {
    "job_": JobRow,
    "mdl_": ModelRow,
    "dst_": DatasetRow,
}


def mark_sent(session: Session, item_id: str) -> None:
    """Note that a message for a queued item is on its way; does nothing where a worker was faster."""
    row = _TABLES[item_id[:4]]
    session.execute(update(row).where(row.id == item_id, row.status == "queued").values(sent_at=utc_now()))
