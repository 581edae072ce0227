"""Real parts: SQLite and PostgreSQL, Redis, storage in a folder, engine processes."""

from __future__ import annotations

import os
import secrets
import time
import urllib.parse
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text, update

from app.db.migrate import upgrade
from app.ids import new_id
from app.settings import Settings
from app.spec.reading import read_spec
from app.tables import ArtifactRow, AttemptRow, EventRow, JobRow, ModelRow
from worker.lease import table_of
from worker.node import Node

POSTGRES = os.environ.get("FEATHERWEIGHT_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
# Tests that run at the same time (xdist's gw0, gw1, …) would take each other's messages.
_DATABASE = 11 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REDIS = os.environ.get("FEATHERWEIGHT_TEST_REDIS", f"redis://127.0.0.1:6379/{_DATABASE}")
ENTRY = "tests.worker.tiny_engine:run"
PORTS = [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}]


def new_postgres():
    """A database of its own, and how to drop it; None where no server answers."""
    url = POSTGRES.replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"fw_worker_{secrets.token_hex(4)}"
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except Exception as error:
        pytest.skip(f"no PostgreSQL at {POSTGRES}: {str(error).splitlines()[0]}")

    def drop():
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()

    return urllib.parse.urlsplit(url)._replace(path=f"/{name}").geturl(), drop


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'test.db'}"
        upgrade(url)
        yield url
        return
    url, drop = new_postgres()
    try:
        upgrade(url)
        yield url
    finally:
        drop()


@pytest.fixture
def redis_url():
    import redis

    client = redis.Redis.from_url(REDIS, socket_connect_timeout=1)
    try:
        client.flushdb()
    except redis.RedisError as error:
        pytest.skip(f"no Redis at {REDIS}: {error}")
    yield REDIS
    client.flushdb()
    client.close()


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(data_dir=tmp_path / "data", database_url=database_url, broker_url=None, device="cpu", threads=1)


@pytest.fixture
def node(settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    node = Node.open(settings, "jobs-test", "jobs", ENTRY)
    yield node
    node.close()


class World:
    """Rows as the API makes them, and what became of them."""

    def __init__(self, node):
        self.node = node

    def upload(self, name="plain", status="queued", kind=ModelRow, file_format="onnx", **values):
        """An uploaded file; a ready model has its graph."""
        blob = self.blob(f"{name} {secrets.token_hex(4)}".encode())
        if kind is ModelRow and status == "ready":
            values = {"graph_sha256": blob.sha256, "graph_facts": {"a": 1}, "inputs": PORTS, "outputs": PORTS} | values
        row = kind(
            id=new_id("mdl" if kind is ModelRow else "dst"), name=name, status=status, sha256=blob.sha256,
            format=file_format, size_bytes=blob.size_bytes, **values,
        )  # fmt: skip
        with self.node.writes.begin() as session:
            session.add(row)
        return row.id

    def blob(self, content):
        writer = self.node.storage.begin()
        writer.write(content)
        return writer.commit()

    def bytes_of(self, sha256):
        with self.node.storage.open(sha256) as stream:
            return stream.read()

    def job(self, name="plain", spec=None, model_id=None, dataset_id=None, **values):
        """A queued job, on a ready model of that name if none is given."""
        model_id = model_id or self.upload(name, "ready")
        row = JobRow(
            id=new_id("job"),
            model_id=model_id,
            dataset_id=dataset_id,
            spec=read_spec(spec or {}).as_json(),
            asked_spec=spec or {"version": 1},
            status="queued",
            **values,
        )
        with self.node.writes.begin() as session:
            session.add(row)
        return row.id

    def row(self, item_id):
        with self.node.reads.begin() as session:
            return session.get_one(table_of(item_id), item_id)

    def attempts(self, job_id):
        with self.node.reads.begin() as session:
            return list(
                session.scalars(select(AttemptRow).where(AttemptRow.job_id == job_id).order_by(AttemptRow.attempt))
            )

    def events(self, job_id):
        with self.node.reads.begin() as session:
            return list(session.scalars(select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.id)))

    def artifacts(self, job_id):
        with self.node.reads.begin() as session:
            return list(session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id)))

    def set(self, item_id, **values):
        with self.node.writes.begin() as session:
            session.execute(update(table_of(item_id)).where(table_of(item_id).id == item_id).values(**values))

    def until(self, item_id, *statuses, seconds=20.0):
        """The row, once it has one of these statuses."""
        end = time.monotonic() + seconds
        while (row := self.row(item_id)).status not in statuses:
            assert time.monotonic() < end, f"{item_id} is {row.status} ({row.error}) after {seconds} s"
            time.sleep(0.02)
        return row


@pytest.fixture
def world(node):
    return World(node)
