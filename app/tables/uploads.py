"""Uploaded files: trained networks and data sets. Both are inspected by a worker under a lease."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import TENANT, Base, Leased


class ModelRow(Leased, Base):
    """A trained network. `status`: queued → running → ready | rejected (the first two are shown as `inspecting`).

    `graph_sha256` is the graph that inspection re-emitted; training children see it and never the uploaded bytes.
    """

    __tablename__ = "models"
    __table_args__ = (
        UniqueConstraint("tenant", "sha256", "signature_key"),
        Index("ix_models_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index(
            "ix_models_unclaimed",
            "sent_at",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_models_running",
            "id",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=TENANT)
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    signature: Mapped[list[Any] | None]
    signature_key: Mapped[str] = mapped_column(String(64), default="")
    inputs: Mapped[list[Any] | None]
    outputs: Mapped[list[Any] | None]
    opset: Mapped[int | None]
    num_params: Mapped[int | None] = mapped_column(BigInteger)
    macs: Mapped[int | None] = mapped_column(BigInteger)
    macs_at: Mapped[dict[str, Any] | None]
    unsupported: Mapped[list[Any] | None]
    layers: Mapped[list[Any] | None]
    graph_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    graph_facts: Mapped[dict[str, Any] | None]
    parent: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]


class DatasetRow(Leased, Base):
    """A data set of one file. `status` as for models."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("tenant", "sha256"),
        Index("ix_datasets_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index(
            "ix_datasets_unclaimed",
            "sent_at",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_datasets_running",
            "id",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=TENANT)
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    fields: Mapped[list[Any] | None]
    splits: Mapped[dict[str, Any] | None]
    num_classes: Mapped[int | None]
    error: Mapped[dict[str, Any] | None]
