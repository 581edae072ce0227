"""From what a client sent to a `Spec`, or to field errors that point at what is wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.errors import BadRequest, FieldError, Unprocessable
from app.spec.schema import Spec

MAX_SPEC_BYTES = 1 << 20
_MAX_YAML_DEPTH = 32
_KEY = re.compile(r"[a-z_]+")  # the branches of a union have capitals or brackets in their names
_CODES = {
    "extra_forbidden": "unknown_field",
    "missing": "field_required",
    "too_long": "too_long",
    "too_short": "too_short",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "non_finite_number",
    "literal_error": "unknown_value",
    "unknown_name": "unknown_value",
}


class _Loader(yaml.SafeLoader):
    """Plain data only: no tags, no aliases (a ten-line file can expand to gigabytes), no duplicate keys."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        if self.depth >= _MAX_YAML_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value if isinstance(key, yaml.ScalarNode) else None for key, _ in node.value]
        if None in keys:
            raise yaml.YAMLError("a key is plain text")
        if len(keys) != len(set(keys)):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"the key {twice!r} is there twice")
        return super().construct_mapping(node, deep)


# "1e-3" is a number to everyone but YAML 1.1, and dates are text to a spec.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(blob: bytes) -> Any:
    """The plain data of a YAML (or JSON) document; raises `BadRequest` with code `invalid_yaml`."""
    if len(blob) > MAX_SPEC_BYTES:
        raise BadRequest(f"a spec has at most {MAX_SPEC_BYTES} bytes", code="body_too_large")
    try:
        return yaml.load(blob.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader, made stricter above
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or (
            str(error) if isinstance(error, yaml.YAMLError) else "not text in UTF-8"
        )
        raise BadRequest(f"the spec is not YAML: {what}{where}", code="invalid_yaml") from None


def read_spec(value: Any, *, pointer: str = "/spec") -> Spec:
    """A validated spec; raises `Unprocessable` whose `errors` point below `pointer`."""
    if value is None:
        return Spec()
    try:
        return Spec.model_validate(value)
    except ValidationError as error:
        raise Unprocessable.of(field_errors(error, value, Spec, pointer)) from None


def field_errors(error: ValidationError, value: Any, schema: type[BaseModel], pointer: str = "") -> list[FieldError]:
    """Pydantic's errors as ours: one per field, the input never echoed, typos answered with the nearest key."""
    found: dict[str, tuple[int, FieldError]] = {}
    for detail in error.errors(include_url=False, include_input=False, include_context=False):
        path = _path_in(value, detail["loc"])
        where = pointer + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
        entry = FieldError(where, _CODES.get(detail["type"], _code_of(detail["type"])), _sentence(detail, path, schema))
        # Of the branches of a union, the one that reached deepest is the one that was meant.
        found.setdefault(where, (len(path), entry))
    return [
        e
        for where, (_, e) in found.items()
        if not any(other != where and other.startswith(where + "/") for other in found)
    ]


def _path_in(value: Any, location: Iterable[int | str]) -> list[int | str]:
    """The part of an error's location that names what was sent (pydantic also lists the union's branches)."""
    path: list[int | str] = []
    parts = list(location)
    for part in parts:
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            path.append(part)
    # A key that is missing is named all the same.
    missing = parts[-1] if parts and isinstance(value, dict) and (not path or path[-1] != parts[-1]) else None
    return [*path, missing] if isinstance(missing, str) and _KEY.fullmatch(missing) else path


def _code_of(kind: str) -> str:
    return "wrong_type" if kind.endswith(("_type", "_parsing", "_from_float")) else kind


def _sentence(detail: ErrorDetails, path: list[int | str], schema: type[BaseModel]) -> str:
    name = str(path[-1]) if path else "the spec"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _keys_beside(schema, path), n=1, cutoff=0.5)
        return f"unknown key {name[:80]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{name[:80]}: {detail['msg'][0].lower() + detail['msg'][1:]}"


def _keys_beside(schema: type[BaseModel], path: list[int | str]) -> list[str]:
    """The keys that are known where the last part of `path` stands."""
    level = [schema]
    for part in path[:-1]:
        if isinstance(part, str):
            level = [
                model
                for parent in level
                if part in parent.model_fields
                for model in _models_in(parent.model_fields[part].annotation)
            ]
    return [key for model in level for key in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
