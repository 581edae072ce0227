"""Artifacts as clients see them."""

from __future__ import annotations

from pydantic import Field

from app.api.schemas import Read, Time
from app.tables import ArtifactRow


class ArtifactRead(Read):
    """A file that a job made."""

    id: str
    name: str
    kind: str = Field(description="model | weights | report | manifest | sensitivity | checkpoint")
    format: str
    size_bytes: int
    sha256: str
    url: str
    created_at: Time

    @classmethod
    def of(cls, row: ArtifactRow) -> ArtifactRead:
        """From the row."""
        shown = {name: getattr(row, name) for name in cls.model_fields if name != "url"}
        return cls.model_validate({**shown, "url": f"/v1/jobs/{row.job_id}/artifacts/{row.name}"})
