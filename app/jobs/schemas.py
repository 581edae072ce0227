"""Jobs as clients send and see them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.api.schemas import ErrorRead, Read, Time
from app.jobs.states import shown_status
from app.spec.schema import Spec
from app.tables import EventRow, JobRow, MetricRow

MAX_METADATA_KEYS = 64
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 1024
_LARGEST_NUMBER = 2**63


class _SpecSchema:
    """Shows the spec's schema in the document; the spec itself is read by `app.spec.reading`, whose errors are better."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(Spec.__pydantic_core_schema__)


class JobCreate(BaseModel):
    """What to do with which model. Without a spec: prune to half of the multiply-accumulates, with recovery."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=64, description="Id of an uploaded model.")
    dataset: str | None = Field(default=None, max_length=64, description="Id of an uploaded data set.")
    spec: Annotated[Any, _SpecSchema] = Field(default=None, description="What to do, in order; null for the default.")
    name: str | None = Field(default=None, max_length=255)
    metadata: dict[str, Any] = Field(
        default={}, description=f"Up to {MAX_METADATA_KEYS} short texts, numbers or booleans of your own."
    )

    @field_validator("metadata")
    @classmethod
    def _is_small(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        return check_metadata(metadata)


class MetadataField(BaseModel):
    """The field `metadata` of a form."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: dict[str, Any]

    @field_validator("metadata")
    @classmethod
    def _is_small(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        return check_metadata(metadata)


def check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is too much to be shown with every job."""
    if len(metadata) > MAX_METADATA_KEYS:
        raise PydanticCustomError("metadata_too_large", f"has at most {MAX_METADATA_KEYS} keys")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            raise PydanticCustomError(
                "metadata_too_large", f"its keys have at most {MAX_METADATA_KEY_CHARS} characters"
            )
        if isinstance(value, str) and len(value) > MAX_METADATA_VALUE_CHARS:
            raise PydanticCustomError(
                "metadata_too_large", f"its texts have at most {MAX_METADATA_VALUE_CHARS} characters"
            )
        if isinstance(value, dict | list):
            raise PydanticCustomError("wrong_type", "its values are texts, numbers, booleans or null")
        if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
            raise PydanticCustomError("out_of_range", "its whole numbers fit into 64 bits")
    return metadata


class JobRead(Read):
    """A compression job."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: str = Field(description="queued | running | cancelling | succeeded | failed | infeasible | cancelled")
    stage: str | None
    progress: float = Field(description="0 to 1")
    eta_seconds: float | None
    queue_position: int | None = Field(description="1 is the next to run; null unless queued.")
    attempt: int
    model: str
    dataset: str | None
    spec: dict[str, Any] = Field(description="As completed with defaults.")
    result: dict[str, Any] | None
    error: ErrorRead | None
    warnings: list[str]
    metadata: dict[str, Any]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None

    @classmethod
    def of(cls, row: JobRow, queue_position: int | None) -> JobRead:
        """From the row and its place in the queue."""
        own = ("id", "name", "stage", "progress", "eta_seconds", "attempt", "spec", "result", "error", "warnings")
        shown = {name: getattr(row, name) for name in (*own, "created_at", "started_at", "finished_at")}
        return cls.model_validate(
            {
                **shown,
                "status": shown_status(row.status, cancel_requested=row.cancel_requested),
                "queue_position": queue_position,
                "model": row.model_id,
                "dataset": row.dataset_id,
                "metadata": row.labels,
            }
        )


class EventRead(Read):
    """One event; ids count up within the job."""

    id: int
    event: str = Field(description="status | progress | metric | log")
    data: dict[str, Any]
    at: Time

    @classmethod
    def of(cls, row: EventRow) -> EventRead:
        """From the row."""
        return cls(id=row.id, event=row.kind, data=row.data, at=row.at)


class MetricPoint(Read):
    """One point of a series."""

    step: int
    stage: str
    value: float | None
    at: Time

    @classmethod
    def of(cls, row: MetricRow) -> MetricPoint:
        """From the row."""
        return cls(step=row.step, stage=row.stage, value=row.value, at=row.at)
