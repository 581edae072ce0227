"""The options of a sensitivity step, which measures and changes nothing."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from app.spec.strict import CRITERION, Glob, SpecModel, one_of, scoring
from app.spec.targets import PruneTarget, Target

#: Kept MACs at which the whole network is cut and refitted, where the spec does not say.
TRADEOFF = (0.8, 0.65, 0.5, 0.35, 0.2)


class Sensitivity(SpecModel):
    """What the network loses when one group of channels is cut and all others are whole, and the trade-off of cutting all."""

    ratios: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.25, 0.5, 0.75], min_length=1, max_length=16, description="Shares of a group's units that go, rising."
    )
    metric: Annotated[str, one_of("metrics")] | None = Field(
        default=None, description="What the plots show; by default the task's metric with labels, else the agreement."
    )
    criterion: Annotated[str, one_of("criteria")] = Field(default="l1", description=CRITERION)
    combine: Literal["readers", "makers", "all"] = "readers"
    samples: int = Field(default=512, ge=1, le=100_000, description="Validation rows that a group is measured on.")
    refit: bool = Field(default=True, description="Refit the layers that read a group before it is measured.")
    include: list[Glob] = Field(default=["*"], min_length=1, max_length=1000)
    exclude: list[Glob] = Field(default=[], max_length=1000)
    tradeoff: list[PruneTarget] = Field(
        default_factory=lambda: [Target(share=share) for share in TRADEOFF],
        max_length=16,
        description="Kept MACs at which the whole network is cut and refitted without training.",
    )

    @field_validator("criterion")
    @classmethod
    def _scores_channels(cls, criterion: str) -> str:
        return scoring(criterion, "channels")

    @field_validator("ratios")
    @classmethod
    def _rising(cls, ratios: list[float]) -> list[float]:
        if any(before >= after for before, after in itertools.pairwise(ratios)):
            raise PydanticCustomError("not_rising", "each ratio is larger than the one before it")
        return ratios
