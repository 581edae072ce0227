"""Data sets as clients see them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.schemas import ErrorRead, Read, Time
from app.api.uploaded_rows import shown_status
from app.tables import DatasetRow


class ArrayRead(Read):
    """One array of a data set."""

    name: str
    dtype: str
    shape: list[int]


class Splits(Read):
    """Rows of each split; rows without a split's suffix count as train."""

    train: int = 0
    val: int = 0
    test: int = 0


class DatasetRead(Read):
    """A data set of one file."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    format: str = Field(description="npz | safetensors")
    size_bytes: int
    sha256: str
    status: str = Field(description="inspecting | ready | rejected")
    fields: list[ArrayRead] | None
    splits: Splits | None
    num_classes: int | None = Field(description="Of integer labels; null without.")
    error: ErrorRead | None
    created_at: Time

    @classmethod
    def of(cls, row: DatasetRow) -> DatasetRead:
        """From the row."""
        shown = {name: getattr(row, name) for name in cls.model_fields if name not in ("object", "status")}
        return cls.model_validate({**shown, "status": shown_status(row.status)})
