"""Errors are facts with a stable code. Only `app.api.error_handlers` knows how they look over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

ErrorClass = Literal["user", "transient", "internal"]


@dataclass(frozen=True)
class FieldError:
    """One wrong field: `pointer` is an RFC 6901 JSON pointer into what was sent."""

    pointer: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"pointer": self.pointer, "code": self.code, "detail": self.detail}


class AppError(Exception):
    """Base of all errors that a client is told about: HTTP status, stable code, a sentence, and what to do next."""

    status: ClassVar[int] = 500
    code: str = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        errors: tuple[FieldError, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.hint = hint
        self.errors = errors
        self.headers = headers or {}


class BadRequest(AppError):
    """The request itself is malformed."""

    status, code = 400, "invalid_request"


class NotFound(AppError):
    """There is nothing of that name for this caller."""

    status, code = 404, "not_found"


class Conflict(AppError):
    """The request is sound, but not in this state of things."""

    status, code = 409, "conflict"


class TooLarge(AppError):
    """More bytes than the service takes."""

    status, code = 413, "file_too_large"


class UnsupportedMedia(AppError):
    """A body in a form that this endpoint does not read."""

    status, code = 415, "unsupported_media_type"


class RangeNotSatisfiable(AppError):
    """No byte of the representation lies in the range asked for."""

    status, code = 416, "range_not_satisfiable"


class Unprocessable(AppError):
    """Well-formed, but it can never work; `errors` point at the fields."""

    status, code = 422, "invalid_request"

    @classmethod
    def of(cls, errors: list[FieldError], *, hint: str | None = None) -> Unprocessable:
        """One error for many fields: the top code is theirs where all share one."""
        codes = {e.code for e in errors}
        code = codes.pop() if len(codes) == 1 else "invalid_request"
        detail = (
            errors[0].detail if len(errors) == 1 else f"{len(errors)} fields are wrong; the first: {errors[0].detail}"
        )
        return cls(detail, code=code, errors=tuple(errors), hint=hint)


class Unavailable(AppError):
    """Something that the service stands on is away for the moment."""

    status, code = 503, "unavailable"


class InsufficientStorage(AppError):
    """The disk behind the storage is full."""

    status, code = 507, "insufficient_storage"


def stored_error(code: str, detail: str, *, error_class: ErrorClass, hint: str | None = None) -> dict[str, Any]:
    """The form in which a failed job or a rejected upload keeps its error."""
    return {"code": code, "detail": detail, "hint": hint, "class": error_class}
