"""What can be done with data sets. Every function works in the caller's transaction."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest
from app.api.uploaded_rows import StoredFile, add_or_find, delete_upload, get_upload
from app.datasets.repository import page_of_datasets
from app.ids import new_id
from app.tables import TENANT, DatasetRow


def register_dataset(session: Session, file: StoredFile) -> tuple[DatasetRow, bool]:
    """The data set of these bytes, and whether it is new (and has to be inspected)."""
    row = DatasetRow(
        id=new_id("dst"), tenant=TENANT, status="queued", name=file.name, format=file.format, sha256=file.sha256,
        size_bytes=file.size_bytes,
    )  # fmt: skip
    return add_or_find(session, row, (DatasetRow.tenant == TENANT) & (DatasetRow.sha256 == file.sha256))


def read_dataset(session: Session, dataset_id: str) -> DatasetRow:
    """A data set; raises `NotFound`."""
    return get_upload(session, DatasetRow, dataset_id)


def list_datasets(session: Session, request: PageRequest) -> Page[DatasetRow]:
    """A page of data sets, newest first."""
    return page_of_datasets(session, request)


def delete_dataset(session: Session, dataset_id: str) -> None:
    """Delete a data set; raises `NotFound`, or `Conflict` (`in_use`)."""
    delete_upload(session, DatasetRow, dataset_id)
