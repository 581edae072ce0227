"""What surrounds every request: its id, the refusal of framings that are not read here, the log line, and the last net.

Plain ASGI, because a `BaseHTTPMiddleware` would buffer streams and lose the context.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.error_handlers import internal_problem, problem_of
from app.api.request_ids import bind_request_id
from app.errors import AppError, BadRequest, UnsupportedMedia
from app.logging import get_logger

_log = get_logger("app.requests")
_PROBES = ("/livez", "/readyz")


class RequestMiddleware:
    """Every response carries `X-Request-Id`; no exception leaves the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = bind_request_id(headers.get("x-request-id"))
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            _check_framing(headers)
            await self._app(scope, receive, send_with_id)
        except AppError as error:
            await problem_of(error)(scope, receive, send_with_id)
        except ClientDisconnect:
            _log.info("client_left", method=scope["method"], path=scope["path"])
        except Exception:
            _log.exception("unforeseen_error", method=scope["method"], path=scope["path"])
            if status:
                raise  # half a response is out: only closing the connection tells the client
            await internal_problem()(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _PROBES:
                seconds = round(time.perf_counter() - began, 4)
                _log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=seconds)


def _check_framing(headers: Headers) -> None:
    if "transfer-encoding" in headers and "content-length" in headers:
        # Two parties that disagree about where a request ends can be made to smuggle one (RFC 9112, 6.1).
        raise BadRequest(
            "Transfer-Encoding and Content-Length together", code="ambiguous_length", headers={"Connection": "close"}
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise UnsupportedMedia(
            "request bodies are taken as they are, without a content encoding",
            code="unsupported_content_encoding",
            hint="send the file itself",
            headers={"Accept-Encoding": "identity"},
        )
