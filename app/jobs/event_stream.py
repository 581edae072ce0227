"""`text/event-stream`: a job's events as they are written, from any number on, until the job has ended.

What has not been sent yet is in the database, not in memory: a client that reads slowly costs one page of events, one that
does not read at all is dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.dependencies import Services
from app.api.watcher import Glance
from app.jobs.events import events_after
from app.jobs.states import TERMINAL
from app.tables import EventRow

HEARTBEAT_SECONDS = 15.0
STALLED_CLIENT_SECONDS = 30.0
_PAGE = 100
_RETRY_MS = 2000


class EventStream(Response):
    """Streams the events of one job with numbers above `after`; a comment each 15 s keeps the connection alive."""

    media_type = "text/event-stream"

    def __init__(self, services: Services, job_id: str, after: int) -> None:
        self.status_code = 200
        self.background = None
        self._services, self._job_id, self._after = services, job_id, after
        self._is_over = False
        headers: Mapping[str, str] = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Content-Type": "text/event-stream",
        }
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        streaming = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_wait_until_left(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            streaming.cancel()
            await asyncio.gather(streaming, leaving, return_exceptions=True)
        if streaming.done() and not streaming.cancelled() and (error := streaming.exception()):
            if isinstance(error, TimeoutError):
                return  # a client that does not read: it comes back with Last-Event-ID
            raise error

    async def _send_all(self, send: Send) -> None:
        await _send(send, f"retry: {_RETRY_MS}\n\n")
        async for text in self._texts():
            await _send(send, text)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _texts(self) -> AsyncIterator[str]:
        while not self._services.watcher.is_stopped:
            page = await self._services.database.read(events_after, self._job_id, self._after, _PAGE)
            if page:
                self._after = page[-1].id
                yield "".join(map(_render, page))
                if _is_end(page[-1]):
                    return
                if len(page) == _PAGE:
                    continue
            if not await self._services.watcher.wait(self._job_id, self._has_news, HEARTBEAT_SECONDS):
                yield ": still here\n\n"
            elif self._is_over:
                return

    def _has_news(self, glance: Glance | None) -> bool:
        has_more = glance is not None and glance.last_event > self._after
        self._is_over = not has_more and (glance is None or glance.status in TERMINAL)
        return has_more or self._is_over


def _is_end(row: EventRow) -> bool:
    return row.kind == "status" and row.data.get("status") in TERMINAL


def _render(row: EventRow) -> str:
    data = {**row.data, "at": row.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    return f"id: {row.id}\nevent: {row.kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


async def _send(send: Send, text: str) -> None:
    async with asyncio.timeout(STALLED_CLIENT_SECONDS):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
