"""Brings a database to the schema of this version; every process may call it, one of them does the work."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.orm import Session

from app.db.engine import database_url


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate up to `revision`; does nothing where the database is there already. The file of a SQLite URL is made."""
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate down to `revision` (`base` empties the database)."""
    command.downgrade(_config(url), revision)


def is_current(session: Session) -> bool:
    """Whether the database has the schema of this version."""
    heads = ScriptDirectory.from_config(_config(None)).get_heads()
    return set(MigrationContext.configure(session.connection()).get_current_heads()) == set(heads)


def _config(url: str | None) -> Config:
    found = importlib.util.find_spec("migrations")
    assert found and found.origin, "the package `migrations` is installed beside `app`"
    config = Config()
    config.set_main_option("script_location", str(Path(found.origin).parent).replace("%", "%%"))
    config.attributes["url"] = None if url is None else database_url(url).render_as_string(hide_password=False)
    return config
