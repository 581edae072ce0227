"""One poller for everybody who waits: `?wait=`, event streams, the file-to-file call.

It asks the database ten times a second, only while somebody waits, and only for the rows that somebody waits for. Nobody
holds a session meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from app.errors import AppError
from app.logging import get_logger

PERIOD_SECONDS = 0.1
_PAUSE_AFTER_ERROR_SECONDS = 1.0
_log = get_logger("app.watcher")


@dataclass(frozen=True)
class Glance:
    """What a waiter needs to know of a row: the status as stored, and the number of its last event (0 for uploads)."""

    status: str
    last_event: int = 0


Look = Callable[[Collection[str]], Awaitable[dict[str, Glance]]]
Until = Callable[[Glance | None], bool]


@dataclass(eq=False)
class _Waiter:
    item_id: str
    until: Until
    done: asyncio.Future[Glance | None]


class Watcher:
    """Wakes waiters when a row is as they want it. Bound to one event loop; used by all requests of a process."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._waiters: set[_Waiter] = set()
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def wait(self, item_id: str, until: Until, seconds: float) -> bool:
        """Wait until `until(glance)` holds, where None is a row that is gone; False after `seconds`, or when stopped."""
        if self._is_stopped or seconds <= 0:
            return False
        waiter = _Waiter(item_id, until, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(seconds):
                await waiter.done
            return True
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return False  # `stop` let go of us
        finally:
            self._waiters.discard(waiter)

    def stop(self) -> None:
        """Let everybody go, now and from now on, so that a server can end without waiting for its clients."""
        self._is_stopped = True
        for waiter in list(self._waiters):
            waiter.done.cancel()

    @property
    def is_stopped(self) -> bool:
        """Whether the process is ending."""
        return self._is_stopped

    async def _poll(self) -> None:
        while self._waiters:
            try:
                asked = list(self._waiters)
                await _tell(asked, await self._look({waiter.item_id for waiter in asked}))
            except AppError as error:
                _log.warning("watcher_cannot_look", code=error.code)
                await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
            except Exception:
                _log.exception("watcher_failed")
                await asyncio.sleep(_PAUSE_AFTER_ERROR_SECONDS)
            await asyncio.sleep(PERIOD_SECONDS)


async def _tell(waiters: list[_Waiter], seen: dict[str, Glance]) -> None:
    for i, waiter in enumerate(waiters):
        if not waiter.done.done() and waiter.until(seen.get(waiter.item_id)):
            waiter.done.set_result(seen.get(waiter.item_id))
        if i % 200 == 199:
            await asyncio.sleep(0)  # a thousand waiters must not hold up everyone else


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
