"""Query parameters that many endpoints share. Unknown ones are errors, so that a typo is not a silent "all"."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.pagination import DEFAULT_LIMIT, MAX_LIMIT, PageRequest

MAX_WAIT_SECONDS = 60.0


class Parameters(BaseModel):
    """Base: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PageParameters(Parameters):
    """`limit` and `cursor` of a list."""

    limit: int = Field(
        default=DEFAULT_LIMIT, ge=1, description=f"Rows of a page; more than {MAX_LIMIT} are given as {MAX_LIMIT}."
    )
    cursor: str | None = Field(default=None, max_length=4096, description="`next_cursor` of the page before.")

    def request(self, *scope: Any) -> PageRequest:
        """What is asked for, of the list and filters that `scope` names."""
        return PageRequest(min(self.limit, MAX_LIMIT), self.cursor or None, scope)


class WaitParameters(Parameters):
    """`wait`: hold the answer until there is something to say."""

    wait: float = Field(default=0, ge=0, description=f"Seconds to wait for the end, at most {MAX_WAIT_SECONDS:g}.")

    @property
    def seconds(self) -> float:
        """The seconds that are really waited."""
        return min(self.wait, MAX_WAIT_SECONDS)


class NoParameters(Parameters):
    """An endpoint without a query."""


Paging = Annotated[PageParameters, Query()]
Waiting = Annotated[WaitParameters, Query()]
NoQuery = Annotated[NoParameters, Query()]
