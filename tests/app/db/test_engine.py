"""Transactions begin as they should, and an absent database is told from a wrong question."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.db.engine import database_url, is_unavailable, make_sync_engine, sync_sessions
from app.db.migrate import downgrade, is_current, upgrade


class TestSqlite:
    def test_pragmas_are_set_on_every_connection(self, tmp_path):
        engine = make_sync_engine(f"sqlite:///{tmp_path / 'new' / 'a.db'}")
        with engine.connect() as connection:
            found = {
                p: connection.exec_driver_sql(f"PRAGMA {p}").scalar()
                for p in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    def test_read_then_write_from_many_threads_is_never_locked_out(self, tmp_path):
        sessions = sync_sessions(engine := make_sync_engine(f"sqlite:///{tmp_path / 'a.db'}"))
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE counter (n INTEGER)"))
            connection.execute(text("INSERT INTO counter VALUES (0)"))
        errors: list[Exception] = []

        def count() -> None:
            for _ in range(25):
                try:
                    with sessions.begin() as session:
                        n = session.execute(text("SELECT n FROM counter")).scalar_one()
                        session.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})
                except OperationalError as error:
                    errors.append(error)

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with sessions() as session:
            assert errors == [] and session.execute(text("SELECT n FROM counter")).scalar_one() == 200

    def test_a_reader_does_not_wait_for_a_writer(self, tmp_path):
        engine = make_sync_engine(f"sqlite:///{tmp_path / 'a.db'}")
        upgrade(f"sqlite:///{tmp_path / 'a.db'}")
        reading = engine.execution_options(sqlite_read=True)
        with engine.begin() as writer:
            writer.execute(text("DELETE FROM jobs"))
            began = time.monotonic()
            with reading.connect() as reader:
                assert reader.execute(text("SELECT count(*) FROM jobs")).scalar() == 0
            assert time.monotonic() - began < 1

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "oracle://x"])
    def test_what_cannot_be_shared_by_two_processes_is_refused(self, url):
        with pytest.raises(ValueError):
            database_url(url)

    def test_postgres_urls_get_their_driver(self):
        assert database_url("postgresql://u:p@h/d").drivername == "postgresql+psycopg"
        assert (
            database_url("postgresql://u:p@h/d", is_async=True)
            .render_as_string(hide_password=False)
            .endswith("u:p@h/d")
        )


class TestIsUnavailable:
    def test_an_absent_database_is(self):
        class WithState(Exception):
            sqlstate = "57P01"

        for error in (
            OperationalError("", {}, Exception()),
            InterfaceError("", {}, Exception()),
            PoolTimeoutError(),
            OSError(),
            TimeoutError(),
            DBAPIError("", {}, WithState()),
            DBAPIError("", {}, Exception(), connection_invalidated=True),
        ):
            assert is_unavailable(error), error

    def test_a_wrong_question_is_not(self):
        for error in (
            IntegrityError("", {}, Exception()),
            ProgrammingError("", {}, Exception()),
            ValueError(),
            KeyError(),
        ):
            assert not is_unavailable(error), error


class TestMigrate:
    def test_up_down_and_up_again(self, tmp_path):
        url = f"sqlite:///{tmp_path / 'a.db'}"
        upgrade(url)
        upgrade(url)
        with sync_sessions(make_sync_engine(url))() as session:
            assert is_current(session)
        downgrade(url, "base")
        with sync_sessions(make_sync_engine(url))() as session:
            assert not is_current(session)
            tables = session.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
        assert set(tables) <= {"alembic_version"}
        upgrade(url)

    def test_two_processes_at_once_migrate_once(self, tmp_path):
        url = f"sqlite:///{tmp_path / 'a.db'}"
        code = "import sys; from app.db.migrate import upgrade; upgrade(sys.argv[1])"
        processes = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
        with sync_sessions(make_sync_engine(url))() as session:
            assert is_current(session)
