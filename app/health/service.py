"""Asks everything that a job needs whether it is there, each with a deadline of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from app.api.dependencies import Services
from app.db.migrate import is_current
from app.errors import AppError
from app.health.schemas import Check, Readiness

DEADLINE_SECONDS = 2.5


async def check_readiness(services: Services) -> Readiness:
    """All checks at once; a frozen dependency costs the deadline and no more."""
    checks = {
        "database": _database(services),
        "broker": _broker(services),
        "storage": _storage(services),
        "worker": _worker(services),
    }
    results = dict(zip(checks, await asyncio.gather(*map(_bounded, checks.values())), strict=True))
    is_ready = all(check.ok for check in results.values())
    return Readiness(status="ready" if is_ready else "unready", checks=results)


async def _bounded(check: Awaitable[Check]) -> Check:
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await check
    except TimeoutError:
        return Check(ok=False, detail=f"no answer within {DEADLINE_SECONDS:g} s")
    except (AppError, OSError) as error:
        return Check(ok=False, detail=error.detail if isinstance(error, AppError) else type(error).__name__)


async def _database(services: Services) -> Check:
    if await services.database.read(is_current):
        return Check(ok=True, detail="answers, and has the schema of this version")
    return Check(ok=False, detail="its schema is of another version: run `featherweight migrate`")


async def _broker(services: Services) -> Check:
    ok = await asyncio.to_thread(services.publisher.ping)
    return Check(ok=ok, detail="answers" if ok else "does not answer; jobs are taken and sent later")


async def _storage(services: Services) -> Check:
    await asyncio.to_thread(services.storage.check)
    return Check(ok=True, detail="takes bytes")


async def _worker(services: Services) -> Check:
    queues = await asyncio.to_thread(services.publisher.live_workers)
    missing = sorted({"jobs", "inspections"} - queues)
    return Check(ok=not missing, detail="answers" if not missing else f"nobody serves {' and '.join(missing)}")
