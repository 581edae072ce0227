"""The API's tests once more, on PostgreSQL. A database is made for the run and dropped at its end."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.db.engine import make_sync_engine
from app.db.migrate import upgrade
from app.tables import Base
from tests.app.conftest import service, sessions, settings

__all__ = ["service", "sessions", "settings"]

SERVER = os.environ.get("FEATHERWEIGHT_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of an empty database of our own."""
    name = f"featherweight_test_{secrets.token_hex(6)}"
    try:
        with psycopg.connect(SERVER, autocommit=True, connect_timeout=2) as server:
            server.execute(f'CREATE DATABASE "{name}"')
    except psycopg.OperationalError as error:
        pytest.skip(f"no Postgres at {make_url(SERVER).host}: {str(error).splitlines()[0]}")
    yield make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(postgres: str) -> str:
    upgrade(postgres)
    engine = make_sync_engine(postgres)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(table.name for table in Base.metadata.sorted_tables)} CASCADE"))
    engine.dispose()
    return postgres
