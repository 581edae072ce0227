"""Tables and migrations say the same on both databases."""

from __future__ import annotations

import warnings

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from app.db.engine import make_sync_engine, sync_sessions
from app.db.migrate import downgrade, is_current, upgrade
from app.tables import Base


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    return request.getfixturevalue("postgres")


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)
    # SQLite cannot reflect an index whose columns go downwards; its text is compared below.
    return [
        d for d in found if not (engine.dialect.name == "sqlite" and "index" in str(d[0]) and "page" in str(d[1].name))
    ]


class TestTablesAndMigrations:
    def test_they_agree(self, url):
        upgrade(url)
        engine = make_sync_engine(url)
        assert differences(engine) == []
        engine.dispose()

    def test_sqlite_has_the_same_indexes(self, tmp_path):
        upgrade(migrated := f"sqlite:///{tmp_path / 'migrated.db'}")
        made = make_sync_engine(f"sqlite:///{tmp_path / 'made.db'}")
        Base.metadata.create_all(made)
        query = text(
            "SELECT name, lower(replace(sql, '\"', '')) FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        )
        found = []
        for engine in (make_sync_engine(migrated), made):
            with engine.connect() as connection:
                found.append(dict(connection.execute(query).all()))
        assert found[0] == found[1]

    def test_down_and_up_again(self, url):
        upgrade(url)
        downgrade(url, "base")
        upgrade(url)
        engine = make_sync_engine(url)
        with sync_sessions(engine)() as session:
            assert is_current(session)
        engine.dispose()
