"""What uploaded models and data sets have in common as rows: found by their bytes, shown, waited for, deleted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.api.filenames import display_name
from app.api.watcher import Glance
from app.errors import Conflict, NotFound
from app.ids import is_id
from app.tables import TENANT, DatasetRow, JobRow, ModelRow

INSPECTING = ("queued", "running")
DELETED = "deleted"

Upload = TypeVar("Upload", ModelRow, DatasetRow)


@dataclass(frozen=True)
class StoredFile:
    """Bytes that are in storage, and what the client called them."""

    name: str
    format: str
    sha256: str
    size_bytes: int

    def renamed(self, name: str | None) -> StoredFile:
        """The same bytes under the name that the client chose, if any."""
        return replace(self, name=display_name(name, self.name)) if name and name.strip() else self


def shown_status(status: str) -> str:
    """The status as the API tells it: inspecting, ready or rejected."""
    return "inspecting" if status in INSPECTING else status


def is_settled(glance: Glance | None) -> bool:
    """Whether inspection has ended (or the row is gone), for waiting."""
    return glance is None or glance.status not in INSPECTING


def get_upload(session: Session, table: type[Upload], upload_id: str, *, lock: bool = False) -> Upload:
    """The row of an id; raises `NotFound`, the same for a foreign, a deleted and an impossible one.

    `lock` keeps the row from being deleted until the transaction ends.
    """
    prefix, noun = ("mdl", "model") if table is ModelRow else ("dst", "data set")
    row = None
    if is_id(upload_id, prefix):
        statement = select(table).where(table.id == upload_id, table.tenant == TENANT, table.status != DELETED)
        row = session.scalars(statement.with_for_update(read=True) if lock else statement).one_or_none()
    if row is None:
        raise NotFound(f"no such {noun}")
    return row


def add_or_find(session: Session, row: Upload, same: Any) -> tuple[Upload, bool]:
    """Insert `row`, or the row that fits `same` where there is one; whether it is new. Two at once make one."""
    table = type(row)
    # Share-locked: an inspection that ends now ends after this transaction, and then sees what waits for it.
    known = select(table).where(same).with_for_update(read=True)
    if (found := session.scalars(known).one_or_none()) is None:
        try:
            with session.begin_nested():
                session.add(row)
            return row, True
        except IntegrityError:
            found = session.scalars(known).one()
    if found.status == "rejected" and (found.error or {}).get("class") != "user":
        # It was not the file's fault: the same bytes deserve another look.
        found.status, found.error, found.sent_at, found.finished_at = "queued", None, None, None
        return found, True
    return found, False


def delete_upload(session: Session, table: type[Upload], upload_id: str) -> None:
    """Delete a model or data set; raises `Conflict` (`in_use`) while a job that has not ended needs it.

    A row that ended jobs refer to stays, hidden and without its bytes' names, so that these are garbage from now on and
    the same bytes sent again are a new upload.
    """
    get_upload(session, table, upload_id)
    if session.get_bind().dialect.name == "postgresql":
        session.scalars(select(table).where(table.id == upload_id).with_for_update()).one_or_none()
    column = JobRow.model_id if table is ModelRow else JobRow.dataset_id
    jobs = session.execute(
        select(func.count(), func.count().filter(JobRow.status.in_(("queued", "running")))).where(column == upload_id)
    ).one()
    if jobs[1]:
        raise Conflict(
            f"{jobs[1]} jobs that have not ended need it", code="in_use", hint="wait for them, or cancel them first"
        )
    if not jobs[0]:
        session.delete(session.get_one(table, upload_id))
        return
    gone: dict[str, Any] = {"status": DELETED, "sha256": f"{DELETED}:{upload_id}"}
    if table is ModelRow:
        gone |= {"graph_sha256": None, "graph_facts": None, "layers": None}
    session.execute(update(table).where(table.id == upload_id).values(**gone))
