"""The id that ties a response, its log lines and a report of trouble together."""

from __future__ import annotations

import contextvars
import re

import structlog

from app.ids import new_id

_current: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
_ACCEPTED = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


def bind_request_id(given: str | None) -> str:
    """Take the client's id where it is harmless, else make one; from here on it is on every log line of this request."""
    request_id = given if given and _ACCEPTED.fullmatch(given) else new_id("req")
    _current.set(request_id)
    structlog.contextvars.bind_contextvars(request_id=request_id)
    return request_id


def current_request_id() -> str:
    """The id of the request that this task serves."""
    return _current.get()
