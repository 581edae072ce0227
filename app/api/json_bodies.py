"""JSON bodies, read strictly: bounded before they are buffered, no duplicate keys, nothing that a database would refuse."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from app.api.body_stream import RequestTimeout, stream_body
from app.errors import BadRequest, FieldError, Unprocessable, UnsupportedMedia
from app.spec.reading import field_errors

MAX_JSON_BYTES = 1 << 20
_MAX_DEPTH = 64
_BODY_SECONDS = 30.0
_UNSAFE_TEXT = re.compile("[\x00\ud800-\udfff]")

M = TypeVar("M", bound=BaseModel)


class _DuplicateKey(ValueError):
    pass


def media_type(request: Request) -> str:
    """The media type of the body, lower case, without parameters; empty where there is none."""
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    kind = media_type(request)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def unsupported_media(*accepted: str) -> UnsupportedMedia:
    """The error for a body of another kind; it says what is taken."""
    return UnsupportedMedia(
        f"the body has to be {' or '.join(accepted)}",
        hint=f"set Content-Type: {accepted[0]}",
        headers={"Accept-Post": ", ".join(accepted)},
    )


async def read_json(request: Request, schema: type[M]) -> M:
    """The JSON body of a request as `schema`; every fault is a 4xx that points at the field."""
    if not is_json(request):
        raise unsupported_media("application/json")
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            blob = b"".join([c async for c in stream_body(request, MAX_JSON_BYTES, code="body_too_large")])
    except TimeoutError:
        raise RequestTimeout("the body comes too slowly", headers={"Connection": "close"}) from None
    if not blob.strip():
        raise Unprocessable("a JSON body is needed", code="body_required")
    return validate(parse_json(blob), schema)


def validate(value: Any, schema: type[M], pointer: str = "") -> M:
    """Plain data as `schema`; raises `Unprocessable` whose errors point below `pointer`."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise Unprocessable.of(field_errors(error, value, schema, pointer)) from None


def parse_json(blob: bytes | str) -> Any:
    """Plain data from JSON text. Raises `BadRequest` (`invalid_json`, `duplicate_key`) and whatever `check_plain` does."""
    try:
        text = blob if isinstance(blob, str) else blob.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
    except _DuplicateKey as error:
        raise BadRequest(str(error), code="duplicate_key") from None
    except UnicodeDecodeError:
        raise BadRequest("the JSON is not in UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"not JSON: {error.msg}, line {error.lineno}, column {error.colno}", code="invalid_json"
        ) from None
    except (ValueError, RecursionError):
        raise BadRequest(
            "not JSON that is read here: too many digits, or nested too deeply", code="invalid_json"
        ) from None
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Refuse what cannot be stored: numbers that are not finite, NUL and lone surrogates in text, endless nesting."""
    stack: list[tuple[Any, str, int]] = [(value, "", 0)]
    while stack:
        item, pointer, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise BadRequest(f"nested more than {_MAX_DEPTH} levels deep", code="invalid_json")
        if isinstance(item, str):
            check_text(item, pointer)
        elif isinstance(item, float) and not math.isfinite(item):
            raise Unprocessable.of([FieldError(pointer, "non_finite_number", "a number has to be finite")])
        elif isinstance(item, dict):
            for key, inner in item.items():
                check_text(str(key), pointer)
                stack.append((inner, f"{pointer}/{str(key)[:80].replace('~', '~0').replace('/', '~1')}", depth + 1))
        elif isinstance(item, list):
            stack.extend((inner, f"{pointer}/{i}", depth + 1) for i, inner in enumerate(item))


def check_text(text: str, pointer: str) -> None:
    """Raises `Unprocessable` (`invalid_string`) for text that PostgreSQL or UTF-8 cannot hold."""
    if _UNSAFE_TEXT.search(text):
        raise Unprocessable.of([FieldError(pointer, "invalid_string", "text without NUL and lone surrogates")])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey("a key is there twice in one object")
    return found
