"""The OpenAPI document: request bodies that are read by hand, and the problem that every error is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.api.schemas import Problem
from app.spec.schema import Spec

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457); `code` is stable, `hint` says what to do next.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
_DESCRIPTION = """
Send a trained network and, if you have it, some data; get back a smaller, faster network in the same format, proven equal
enough, with a report that says what changed.

    curl -F model=@model.onnx -F dataset=@data.npz -o small.onnx -L URL/v1/compress

Errors are `application/problem+json`; every response carries `X-Request-Id`. Lists are newest first, by `limit` and
`cursor`. `wait` holds an answer, at most 60 seconds, until there is something to say. A POST with an `Idempotency-Key` can
be repeated safely for a day. Whatever is in `Accept`, the answer is JSON, except for files and event streams.
"""
_extra_schemas: dict[str, type[BaseModel]] = {"Problem": Problem, "Spec": Spec}


def body_schema(
    *,
    form: Mapping[str, str] | None = None,
    required: Sequence[str] = (),
    json: type[BaseModel] | None = None,
    raw: bool = False,
) -> dict[str, Any]:
    """`openapi_extra` for a body that the endpoint reads from the stream: a form, JSON, or the file itself."""
    content: dict[str, Any] = {}
    if form:
        properties = {
            name: {"type": "string"} | ({"format": "binary"} if kind == "binary" else {}) for name, kind in form.items()
        }
        schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
        content["multipart/form-data"] = {"schema": schema}
    if json:
        _extra_schemas[json.__name__] = json
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{json.__name__}"}}
    if raw:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def add_documentation(app: FastAPI) -> None:
    """Serve the document with the schemas that the framework cannot see by itself."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title="Featherweight",
                version=app.version,
                description=_DESCRIPTION,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, model in _extra_schemas.items():
                schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[name] = schema
            _drop_framework_errors(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]


def _drop_framework_errors(document: dict[str, Any]) -> None:
    """FastAPI lists its own 422, which no endpoint sends."""
    for path in document["paths"].values():
        for operation in path.values():
            operation.get("responses", {}).pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
