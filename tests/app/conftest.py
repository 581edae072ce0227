"""The API in this process, on a real database and a real folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.db.engine import make_sync_engine, sync_sessions
from app.db.migrate import upgrade
from app.main import create_app
from app.settings import Settings
from tests.app.service import Service


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'data' / 'featherweight.db'}"


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    upgrade(database_url)
    # No broker: the API answers 202 all the same, which is what it has to do.
    return Settings(_env_file=None, data_dir=tmp_path / "data", database_url=database_url, max_upload_bytes=1 << 20)


@pytest.fixture
def sessions(settings: Settings) -> Iterator[sessionmaker[Session]]:
    """What a worker would use to write rows."""
    engine = make_sync_engine(settings.resolved_database_url)
    yield sync_sessions(engine)
    engine.dispose()


@pytest.fixture
def service(settings: Settings, sessions: sessionmaker[Session]) -> Iterator[Service]:
    with asyncio.Runner() as runner:
        app = create_app(settings)
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=True), base_url="http://test"
        )
        yield Service(runner, client, app, sessions)
        runner.run(client.aclose())
        runner.run(app.state.services.close())
