"""Queries on data sets."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest, created_key, newest_first
from app.api.uploaded_rows import DELETED
from app.tables import TENANT, DatasetRow


def page_of_datasets(session: Session, request: PageRequest) -> Page[DatasetRow]:
    """The data sets of a tenant, newest first."""
    statement = select(DatasetRow).where(DatasetRow.tenant == TENANT, DatasetRow.status != DELETED)
    return request.page(list(session.scalars(newest_first(statement, DatasetRow, request))), created_key)
