"""Alembic's entry: runs the migrations on the URL that `app.db.migrate` (or the settings) names, under one lock."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from app.db.engine import make_sync_engine
from app.settings import load_settings
from app.tables import Base

_LOCK = 0x66656174


def run() -> None:
    """Run the migrations in one transaction; a second process waits for it and then finds nothing to do."""
    url = context.config.attributes.get("url") or load_settings().resolved_database_url
    engine = make_sync_engine(url, with_limits=False)
    try:
        with engine.begin() as connection:  # on SQLite this is BEGIN IMMEDIATE, which is the lock
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                render_as_batch=connection.dialect.name == "sqlite",
                transactional_ddl=True,
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()


run()
