"""What all answers have in common."""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from starlette.responses import Response

from app.api.idempotency import Answer

T = TypeVar("T")

Time = Annotated[
    dt.datetime,
    PlainSerializer(lambda at: at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), return_type=str),
]


class Read(BaseModel):
    """Base of what is answered: made from rows, floats that are not finite leave as null."""

    model_config = ConfigDict(
        from_attributes=True, ser_json_inf_nan="null", json_schema_serialization_defaults_required=True
    )


class ListOf(Read, Generic[T]):
    """A page of a list."""

    data: list[T]
    next_cursor: str | None = Field(description="Give it back as `cursor`; null at the end.")


class ErrorRead(Read):
    """Why a job failed or an upload was rejected."""

    code: str
    detail: str
    hint: str | None = None
    error_class: str = Field(
        alias="class", description="user: it will never work; transient: it may, later; internal: our fault."
    )

    model_config = ConfigDict(populate_by_name=True)


class FieldProblem(Read):
    """One wrong field."""

    pointer: str = Field(description="RFC 6901 JSON pointer into what was sent.")
    code: str
    detail: str


class Problem(Read):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; what programs should look at.")
    errors: list[FieldProblem]
    hint: str | None = Field(description="What to do next.")
    request_id: str


def plain(model: BaseModel) -> dict[str, Any]:
    """The JSON data of an answer."""
    return model.model_dump(mode="json", by_alias=True)


def json_response(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer as JSON."""
    return Response(model.model_dump_json(by_alias=True), status, headers, "application/json")


def answer_response(answer: Answer) -> Response:
    """The answer to a POST, fresh or stored, in the same form as `json_response`."""
    body = json.dumps(answer.body, separators=(",", ":"))
    return Response(body, answer.status, answer.headers, "application/json")
