"""Models as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas import ErrorRead, Read, Time
from app.api.uploaded_rows import shown_status
from app.tables import ModelRow


class Port(Read):
    """An input or output: a dimension is an integer, or a name where it is free."""

    name: str
    dtype: str
    shape: list[int | str | None]


class Parent(Read):
    """The job that made this model, and the model that the job began with."""

    job_id: str
    model_id: str


class ModelRead(Read):
    """A trained network."""

    id: str
    object: Literal["model"] = "model"
    name: str
    format: str = Field(description="onnx | torchscript | exported_program")
    size_bytes: int
    sha256: str
    status: str = Field(description="inspecting | ready | rejected")
    inputs: list[Port] | None = Field(description="null while inspecting, and for TorchScript without a signature")
    outputs: list[Port] | None
    opset: int | None
    num_params: int | None
    macs: int | None = Field(description="Multiply-accumulates of one sample, at the shape `macs_at`.")
    macs_at: dict[str, Any] | None
    unsupported: list[Any] | None = Field(description="What the engine leaves as it is.")
    parent: Parent | None
    error: ErrorRead | None
    created_at: Time

    @classmethod
    def of(cls, row: ModelRow) -> ModelRead:
        """From the row."""
        shown = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "status")}
        return cls.model_validate({**shown, "status": shown_status(row.status)})


class ModelFromArtifact(BaseModel):
    """Makes a model of what a job produced."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job_id: str = Field(max_length=64)
    artifact: str = Field(max_length=64, description="The artifact's name, such as `model.onnx`.")
    name: str | None = Field(default=None, min_length=1, max_length=255)


class Layer(Read):
    """One weight-bearing node."""

    model_config = ConfigDict(extra="allow")

    name: str
    op: str
    params: int
    macs: int
    prunable: bool = Field(description="Whether its outputs can be cut.")
    kept_because: str | None
