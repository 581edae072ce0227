"""Jobs and what they leave behind: attempts, events, metrics, artifacts."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.tables.base import TENANT, Base, Leased, utc_now


def _job_key() -> ForeignKey:
    return ForeignKey("jobs.id", ondelete="CASCADE")


class JobRow(Leased, Base):
    """A compression job; `app.jobs.states` lists the transitions of `status`."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_page", "tenant", text("created_at DESC"), text("id DESC")),
        Index("ix_jobs_page_by_status", "tenant", "status", text("created_at DESC"), text("id DESC")),
        Index(
            "ix_jobs_unclaimed",
            "sent_at",
            sqlite_where=text("status = 'queued'"),
            postgresql_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_running",
            "id",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), default=TENANT)
    name: Mapped[str | None] = mapped_column(String(255))
    labels: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    spec: Mapped[dict[str, Any]]
    #: What the client asked for, while `spec` cannot be completed: its uploads are being inspected. Else null.
    asked_spec: Mapped[dict[str, Any] | None]
    stage: Mapped[str | None] = mapped_column(String(64))
    progress: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    warnings: Mapped[list[Any]] = mapped_column(default=list)
    last_event: Mapped[int] = mapped_column(default=0)


class AttemptRow(Base):
    """One claim of a job by a worker, and how it ended."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(_job_key(), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str] = mapped_column(String(128))
    started_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    ended_at: Mapped[dt.datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(64))
    exit_code: Mapped[int | None]


class EventRow(Base):
    """One event; `id` counts up within the job, taken in the transaction that writes it."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(_job_key(), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
    at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class MetricRow(Base):
    """One point of a metric's series."""

    __tablename__ = "metrics"
    __table_args__ = (Index("ix_metrics_series", "job_id", "name", "id"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(_job_key())
    attempt: Mapped[int]
    name: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    stage: Mapped[str] = mapped_column(String(64))
    value: Mapped[float | None]
    at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class ArtifactRow(Base):
    """One file that a job made; its bytes lie in storage under `sha256`."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(_job_key())
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    format: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class IdempotencyRow(Base):
    """The stored answer to a POST that carried an `Idempotency-Key`; `status` is null while it runs."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True, default=TENANT)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    route: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    body: Mapped[dict[str, Any] | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
