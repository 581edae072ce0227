"""Engines for SQLite and PostgreSQL, and the answer to "is it the database that is away?".

SQLite: WAL with full synchronisation (a power cut loses no acknowledged job) and `BEGIN IMMEDIATE`, because a deferred
transaction that reads first and writes later fails at once with "database is locked" whatever the busy timeout. An engine
with the execution option `sqlite_read=True` begins plainly, so that readers never wait for a writer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

BUSY_TIMEOUT_MS = 20_000
# What the server says when it goes away, is full, or gave up on this transaction: worth trying again.
_TRANSIENT_STATES = {"57P01", "57P02", "57P03", "53300", "40001", "40P01", "55P03", "57014"}
# A cut cable is found in seconds instead of the hours that the kernel's defaults allow.
_POSTGRES_ARGS: dict[str, Any] = {
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_POSTGRES_LIMITS = "-c statement_timeout=30000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"


def database_url(url: str, *, is_async: bool = False) -> URL:
    """The URL with the driver that we use for it: psycopg for PostgreSQL, aiosqlite or sqlite3 for SQLite."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("a SQLite database has to be a file: API and worker are two processes")
        return parsed.set(drivername="sqlite+aiosqlite" if is_async else "sqlite")
    raise ValueError(f"the database is SQLite or PostgreSQL, not {backend}")


def make_sync_engine(url: str, *, with_limits: bool = True) -> Engine:
    """An engine for the worker; `with_limits=False` leaves out PostgreSQL's time-outs, for migrations."""
    parsed = database_url(url)
    engine = create_engine(parsed, **_options(parsed, with_limits))
    _listen(engine)
    return engine


def make_async_engine(url: str) -> AsyncEngine:
    """An engine for the API. `engine.execution_options(sqlite_read=True)` is the one for reading, on the same pool."""
    parsed = database_url(url, is_async=True)
    engine = create_async_engine(parsed, **_options(parsed, True))
    _listen(engine.sync_engine)
    return engine


def sync_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def is_unavailable(error: BaseException) -> bool:
    """Whether a database call failed because the database is away or busy, and not because of what was asked."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError | PendingRollbackError):
        return True
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return error.connection_invalidated or state.startswith("08") or state in _TRANSIENT_STATES
    return isinstance(error, OSError | TimeoutError)


def _options(url: URL, with_limits: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"pool_size": 10, "max_overflow": 5, "pool_timeout": 10}
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
        return options
    limits = {"options": _POSTGRES_LIMITS} if with_limits and "options" not in url.query else {}
    return options | {"pool_pre_ping": True, "connect_args": _POSTGRES_ARGS | limits}


def _listen(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("sqlite_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
