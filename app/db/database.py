"""The API's way to the database: one plain function, one transaction, committed before the answer is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from app.db.engine import is_unavailable, make_async_engine
from app.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Runs functions of a sync `Session`, so that services are shared with the worker and never hold a session for long.

    Nothing connects before the first call. Where the database is away, both calls raise `Unavailable`
    (`database_unavailable`, with a `Retry-After`).
    """

    def __init__(self, url: str) -> None:
        self._engine = make_async_engine(url)
        self._writes = async_sessionmaker(self._engine, expire_on_commit=False)
        self._reads = async_sessionmaker(self._engine.execution_options(sqlite_read=True), expire_on_commit=False)

    async def read(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(session, …)` in a transaction that only reads."""
        return await self._run(self._reads, function, *args, **kwargs)

    async def write(self, function: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(session, …)` in a transaction that is committed when this returns, and undone when it raises."""
        return await self._run(self._writes, function, *args, **kwargs)

    async def _run(
        self,
        sessions: async_sessionmaker[AsyncSession],
        function: Callable[Concatenate[Session, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            async with sessions() as session, session.begin():
                return await session.run_sync(lambda plain: function(plain, *args, **kwargs))
        except Exception as error:
            if not is_unavailable(error):
                raise
            raise Unavailable(
                "the database does not answer",
                code="database_unavailable",
                hint="nothing was changed, or it was changed whole; try again in a few seconds",
                headers={"Retry-After": "3"},
            ) from error

    async def ping(self) -> None:
        """One round trip; raises `Unavailable`."""
        await self.read(lambda session: session.execute(text("SELECT 1")))

    async def dispose(self) -> None:
        """Close all connections."""
        await self._engine.dispose()
