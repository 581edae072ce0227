"""The tables of the first release.

Revision: 0001, after: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_TIME = sa.DateTime(timezone=True)
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_uploads()
    _create_jobs()
    _create_what_jobs_leave()
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("route", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", _JSON),
        sa.Column("body", _JSON),
        sa.Column("created_at", _TIME, nullable=False),
    )


def downgrade() -> None:
    for table in ("idempotency_keys", "artifacts", "metrics", "events", "attempts", "jobs", "datasets", "models"):
        op.drop_table(table)


def _leased_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("heartbeat", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("sent_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
    ]


def _create_leased_indexes(table: str) -> None:
    op.create_index(f"ix_{table}_page", table, ["tenant", sa.text("created_at DESC"), sa.text("id DESC")])
    for name, column, status in (("unclaimed", "sent_at", "queued"), ("running", "id", "running")):
        where = sa.text(f"status = '{status}'")
        op.create_index(f"ix_{table}_{name}", table, [column], sqlite_where=where, postgresql_where=where)


def _create_uploads() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("signature", _JSON),
        sa.Column("signature_key", sa.String(64), nullable=False),
        sa.Column("inputs", _JSON),
        sa.Column("outputs", _JSON),
        sa.Column("opset", sa.Integer),
        sa.Column("num_params", sa.BigInteger),
        sa.Column("macs", sa.BigInteger),
        sa.Column("macs_at", _JSON),
        sa.Column("unsupported", _JSON),
        sa.Column("layers", _JSON),
        sa.Column("graph_sha256", sa.String(64), index=True),
        sa.Column("graph_facts", _JSON),
        sa.Column("parent", _JSON),
        sa.Column("error", _JSON),
        *_leased_columns(),
        sa.UniqueConstraint("tenant", "sha256", "signature_key", name="uq_models_tenant_sha256_signature_key"),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("fields", _JSON),
        sa.Column("splits", _JSON),
        sa.Column("num_classes", sa.Integer),
        sa.Column("error", _JSON),
        *_leased_columns(),
        sa.UniqueConstraint("tenant", "sha256", name="uq_datasets_tenant_sha256"),
    )
    for table in ("models", "datasets"):
        _create_leased_indexes(table)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("metadata", _JSON, nullable=False),
        sa.Column("model_id", sa.String(40), sa.ForeignKey("models.id"), nullable=False, index=True),
        sa.Column("dataset_id", sa.String(40), sa.ForeignKey("datasets.id"), index=True),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("asked_spec", _JSON, nullable=True),
        sa.Column("stage", sa.String(64)),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("eta_seconds", sa.Double),
        sa.Column("result", _JSON),
        sa.Column("error", _JSON),
        sa.Column("warnings", _JSON, nullable=False),
        sa.Column("last_event", sa.Integer, nullable=False),
        *_leased_columns(),
    )
    _create_leased_indexes("jobs")
    newest_first = [sa.text("created_at DESC"), sa.text("id DESC")]
    op.create_index("ix_jobs_page_by_status", "jobs", ["tenant", "status", *newest_first])


def _job_key(*, is_key: bool) -> sa.Column[object]:
    return sa.Column(
        "job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=is_key, nullable=False
    )


def _create_what_jobs_leave() -> None:
    op.create_table(
        "attempts",
        _job_key(is_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker", sa.String(128), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("outcome", sa.String(64)),
        sa.Column("exit_code", sa.Integer),
    )
    op.create_table(
        "events",
        _job_key(is_key=True),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_table(
        "metrics",
        sa.Column("id", _NUMBER, primary_key=True),
        _job_key(is_key=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("stage", sa.String(64), nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("ix_metrics_series", "metrics", ["job_id", "name", "id"])
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(40), primary_key=True),
        _job_key(is_key=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint("job_id", "name", name="uq_artifacts_job_id_name"),
    )
