"""The one place that knows how an error looks over HTTP: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from app.api.request_ids import current_request_id
from app.errors import AppError, FieldError, Unprocessable

MEDIA_TYPE = "application/problem+json"
_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "field_required",
    "finite_number": "non_finite_number",
    "enum": "unknown_value",
    "literal_error": "unknown_value",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "string_too_long": "too_long",
}
_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    hint: str | None = None,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """One problem document. What the client sent is never echoed beyond the names of fields."""
    body = {
        "type": f"urn:featherweight:problem:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [error.as_dict() for error in errors],
        "hint": hint,
        "request_id": current_request_id(),
        **(extra or {}),
    }
    # ASCII escapes carry any text, lone surrogates included.
    return Response(json.dumps(body).encode(), status, dict(headers or {}), MEDIA_TYPE)


def problem_of(error: AppError) -> Response:
    """An error of ours."""
    return problem(error.status, error.code, error.detail, hint=error.hint, errors=error.errors, headers=error.headers)


def internal_problem() -> Response:
    """What is said about an error that nobody foresaw: nothing but the id to ask about."""
    return problem(
        500,
        "internal_error",
        "the service made a mistake; it is in the log under this request id",
        hint="report the request id; sending the same request again is safe",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Render all errors of `app` here, those of the framework included."""

    async def render_app_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return problem_of(error)

    async def render_invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_of(Unprocessable.of([_field_error(e) for e in error.errors()]))

    async def render_framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _framework_problem(app, request, error)

    app.add_exception_handler(AppError, render_app_error)
    app.add_exception_handler(RequestValidationError, render_invalid)
    app.add_exception_handler(HTTPException, render_framework_error)


def _field_error(error: Mapping[str, Any]) -> FieldError:
    kind, location = error["type"], [str(part) for part in error["loc"]]
    code = _CODES.get(kind) or ("wrong_type" if kind.endswith(("_type", "_parsing")) else kind)
    pointer = "".join("/" + part[:80].replace("~", "~0").replace("/", "~1") for part in location)
    name = location[-1][:80] if location else "the request"
    detail = (
        f"unknown parameter {name!r}"
        if kind == "extra_forbidden"
        else f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    )
    return FieldError(pointer, code, detail)


def _framework_problem(app: FastAPI, request: Request, error: HTTPException) -> Response:
    code = _FRAMEWORK_CODES.get(error.status_code, "invalid_request")
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return problem(
            404, code, "there is nothing at this path", hint="GET /openapi.json lists the paths", headers=headers
        )
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_at(app, request))
        return problem(405, code, f"this path takes {headers['Allow']}", headers=headers)
    return problem(error.status_code, code, str(error.detail), headers=headers)


def _methods_at(app: FastAPI, request: Request) -> list[str]:
    """All methods of a path; a router alone only names those of the first route that matches."""
    routes: list[Route] = [*(r for r in app.routes if isinstance(r, Route)), *app.state.routes]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in matching for method in route.methods or ()})
