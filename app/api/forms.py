"""`multipart/form-data`, streamed: files go to storage as they arrive, texts are short and bounded."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from app.api.body_stream import check_declared_length, stream_body
from app.api.digests import content_digest
from app.api.json_bodies import MAX_JSON_BYTES, check_text, media_type, unsupported_media
from app.api.staging import StagedFile, Staging
from app.errors import BadRequest, FieldError, TooLarge, Unprocessable

MAX_PARTS = 32
_OVERHEAD_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")


@dataclass
class Form:
    """What arrived: files by field, and texts by field (as bytes, UTF-8 not checked)."""

    files: dict[str, StagedFile] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """A text field; raises where it is not UTF-8 or holds what cannot be stored."""
        if name not in self.texts:
            return None
        try:
            text = self.texts[name].decode("utf-8")
        except UnicodeDecodeError:
            raise Unprocessable.of([FieldError(f"/{name}", "invalid_string", "text in UTF-8")]) from None
        check_text(text, f"/{name}")
        return text

    def fingerprint(self) -> dict[str, Any]:
        """What tells this form from another, whatever the boundary and the order of its parts."""
        return {
            "files": {name: [file.name, file.sha256] for name, file in self.files.items()},
            "texts": {name: text.hex() for name, text in self.texts.items()},
        }


def is_multipart(request: Request) -> bool:
    """Whether the body says that it is a form with files."""
    return media_type(request) == "multipart/form-data"


async def read_form(request: Request, staging: Staging, *, files: Collection[str], texts: Collection[str]) -> Form:
    """The form of a request. A field of `files` that comes without a file name is a text, if `texts` lists it as well.

    Raises `BadRequest` (`invalid_multipart`), `Unprocessable` (`unknown_field`, `duplicate_field`, `empty_file`,
    `digest_mismatch`) and `TooLarge`. Needs a few megabytes, whatever the size of the files.
    """
    if not is_multipart(request):
        raise unsupported_media("multipart/form-data")
    limit = staging.limit_bytes * max(1, len(files)) + MAX_JSON_BYTES * len(texts) + _OVERHEAD_BYTES
    check_declared_length(request, limit)
    reader = _Reader(_boundary(request), staging, files, texts)
    async for chunk in stream_body(request, limit):
        await reader.feed(chunk)
    return reader.result()


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("the Content-Type names no boundary")
    return boundary


def _malformed(detail: str) -> BadRequest:
    hint = "let your client build it: curl -F file=@PATH"
    return BadRequest(f"not a readable form: {detail}", code="invalid_multipart", hint=hint)


class _Reader:
    """Turns the parser's callbacks, which cannot wait, into a list of steps that can."""

    def __init__(self, boundary: bytes, staging: Staging, files: Collection[str], texts: Collection[str]) -> None:
        self._staging, self._file_names, self._text_names = staging, files, texts
        self._steps: list[tuple[str, bytes]] = []
        self._form = Form()
        self._num_parts = 0
        self._is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._file: StagedFile | None = None
        self._text: bytearray | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": lambda: self._steps.append(("begin", b"")),
                    "on_header_field": lambda data, start, end: self._steps.append(("field", data[start:end])),
                    "on_header_value": lambda data, start, end: self._steps.append(("value", data[start:end])),
                    "on_header_end": lambda: self._steps.append(("header", b"")),
                    "on_headers_finished": lambda: self._steps.append(("headers", b"")),
                    "on_part_data": lambda data, start, end: self._steps.append(("data", data[start:end])),
                    "on_part_end": lambda: self._steps.append(("end", b"")),
                    "on_end": lambda: self._steps.append(("complete", b"")),
                },
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _malformed(str(error)) from None
        self._name = self._value = b""

    async def feed(self, chunk: bytes) -> None:
        """Parse a chunk and do what it says."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed("its parts are not delimited as the boundary says") from None
        steps, self._steps = self._steps, []
        for kind, data in steps:
            await self._take(kind, data)

    def result(self) -> Form:
        """The whole form; raises where the closing boundary never came."""
        if not self._is_complete:
            raise _malformed("it ends in the middle")
        return self._form

    async def _take(self, kind: str, data: bytes) -> None:
        if kind == "data":
            await self._take_data(data)
        elif kind == "field":
            self._name += data
        elif kind == "value":
            self._value += data
        elif kind == "header":
            self._headers[self._name.lower()] = self._value
            self._name = self._value = b""
        elif kind == "headers":
            await self._begin_part()
        elif kind == "end":
            await self._end_part()
        elif kind == "begin":
            self._headers = {}
        elif kind == "complete":
            self._is_complete = True

    async def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise _malformed(f"more than {MAX_PARTS} parts")
        if self._headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in _PLAIN_ENCODINGS:
            raise _malformed("parts are taken as they are, without a transfer encoding")
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = name
        self._check_field(name)
        filename = options.get(b"filename")
        if name in self._file_names and (filename is not None or name not in self._text_names):
            if filename is None:
                detail = f"{name} has to be a file"
                raise Unprocessable.of([FieldError(f"/{name}", "file_needed", detail)], hint=f"curl -F {name}=@PATH")
            digest = self._headers.get(b"repr-digest") or self._headers.get(b"content-digest")
            expected = content_digest(digest.decode("latin-1") if digest else None)
            self._file = await self._staging.begin(filename.decode("utf-8", "replace"), expected)
        else:
            self._text = bytearray()

    def _check_field(self, name: str) -> None:
        known = sorted({*self._file_names, *self._text_names})
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            said = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise Unprocessable.of([FieldError(f"/{name[:80]}", "unknown_field", f"unknown field {name[:80]!r}{said}")])
        if name in self._form.files or name in self._form.texts:
            raise Unprocessable.of([FieldError(f"/{name}", "duplicate_field", f"{name} is there twice")])

    async def _take_data(self, data: bytes) -> None:
        if self._file is not None:
            await self._file.feed(data)
        elif self._text is not None:
            self._text += data
            if len(self._text) > MAX_JSON_BYTES:
                raise TooLarge(f"{self._field} has at most {MAX_JSON_BYTES} bytes", code="body_too_large")

    async def _end_part(self) -> None:
        if self._file is not None:
            await self._file.finish()
            self._form.files[self._field] = self._file
        elif self._text is not None:
            self._form.texts[self._field] = bytes(self._text)
        self._file = self._text = None


def missing_file(name: str) -> Unprocessable:
    """The error for a form that lacks a file."""
    return Unprocessable.of(
        [FieldError(f"/{name}", "field_required", f"{name} is missing")], hint=f"curl -F {name}=@PATH"
    )
