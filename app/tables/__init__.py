"""ORM rows. A "model" is a neural network everywhere; what the database holds are rows."""

from app.tables.base import TENANT, Base, Leased, UtcDateTime, utc_now
from app.tables.jobs import ArtifactRow, AttemptRow, EventRow, IdempotencyRow, JobRow, MetricRow
from app.tables.uploads import DatasetRow, ModelRow

__all__ = [
    "TENANT",
    "ArtifactRow",
    "AttemptRow",
    "Base",
    "DatasetRow",
    "EventRow",
    "IdempotencyRow",
    "JobRow",
    "Leased",
    "MetricRow",
    "ModelRow",
    "UtcDateTime",
    "utc_now",
]
