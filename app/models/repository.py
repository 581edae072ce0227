"""Queries on models."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api.pagination import Page, PageRequest, created_key, newest_first
from app.api.uploaded_rows import DELETED
from app.tables import TENANT, ModelRow


def page_of_models(session: Session, request: PageRequest) -> Page[ModelRow]:
    """The models of a tenant, newest first."""
    statement = select(ModelRow).where(ModelRow.tenant == TENANT, ModelRow.status != DELETED)
    return request.page(list(session.scalars(newest_first(statement, ModelRow, request))), created_key)
