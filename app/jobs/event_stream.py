"""`text/event-stream`: a job's events as they are written, from any number on, until the job has ended.

What has not been sent yet is in the database, not in memory: a client that reads slowly costs one page of events, one that
does not read at all is dropped.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from pydantic_core import to_json
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.dependencies import Services
from app.api.watcher import Glance
from app.db.database import Database
from app.jobs.events import events_after
from app.jobs.states import TERMINAL
from app.tables import EventRow

HEARTBEAT_SECONDS = 15.0
STALLED_CLIENT_SECONDS = 30.0
_PAGE = 50
_KEPT_PAGES = 64
_RETRY_MS = 2000


@dataclass(frozen=True)
class Page:
    """Some events as they go over the wire, and where they end."""

    text: bytes
    last: int
    is_end: bool
    is_full: bool


class Pages:
    """Pages that many clients of one job ask for at the same moment: read once, kept a little while.

    A page that has got longer since is still a right beginning; empty ones are not kept.
    """

    def __init__(self) -> None:
        self._tasks: OrderedDict[tuple[str, int], asyncio.Task[Page | None]] = OrderedDict()

    async def get(self, database: Database, job_id: str, after: int) -> Page | None:
        """The events with numbers above `after`, or None where there are none yet."""
        key = (job_id, after)
        if key not in self._tasks:
            task = asyncio.create_task(database.read(_read_page, job_id, after))
            task.add_done_callback(lambda done: self._forget_empty(key, done))
            self._tasks[key] = task
            while len(self._tasks) > _KEPT_PAGES:
                self._tasks.popitem(last=False)
        # Shielded: the client that asked first may leave while others wait for the same page.
        return await asyncio.shield(self._tasks[key])

    def _forget_empty(self, key: tuple[str, int], task: asyncio.Task[Page | None]) -> None:
        if task.cancelled() or task.exception() or task.result() is None:
            self._tasks.pop(key, None)


def _read_page(session: Session, job_id: str, after: int) -> Page | None:
    rows = events_after(session, job_id, after, _PAGE)
    if not rows:
        return None
    is_end = rows[-1].kind == "status" and rows[-1].data.get("status") in TERMINAL
    return Page("".join(map(_render, rows)).encode(), rows[-1].id, is_end, len(rows) == _PAGE)


class EventStream(Response):
    """Streams the events of one job with numbers above `after`; a comment each 15 s keeps the connection alive."""

    media_type = "text/event-stream"

    def __init__(self, services: Services, pages: Pages, job_id: str, after: int) -> None:
        self.status_code = 200
        self.background = None
        self._services, self._pages, self._job_id, self._after = services, pages, job_id, after
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
        await _send(send, f"retry: {_RETRY_MS}\n\n".encode())
        async for text in self._texts():
            await _send(send, text)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _texts(self) -> AsyncIterator[bytes]:
        while not self._services.watcher.is_stopped:
            if page := await self._pages.get(self._services.database, self._job_id, self._after):
                self._after = page.last
                yield page.text
                if page.is_end:
                    return
                if page.is_full:
                    continue
            if not await self._services.watcher.wait(self._job_id, self._has_news, HEARTBEAT_SECONDS):
                yield b": still here\n\n"
            elif self._is_over:
                return

    def _has_news(self, glance: Glance | None) -> bool:
        has_more = glance is not None and glance.last_event > self._after
        self._is_over = not has_more and (glance is None or glance.status in TERMINAL)
        return has_more or self._is_over


def _render(row: EventRow) -> str:
    data = {**row.data, "at": row.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    return f"id: {row.id}\nevent: {row.kind}\ndata: {to_json(data, inf_nan_mode='null').decode()}\n\n"


async def _send(send: Send, text: bytes) -> None:
    async with asyncio.timeout(STALLED_CLIENT_SECONDS):
        await send({"type": "http.response.body", "body": text, "more_body": True})


async def _wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
