"""What one worker process stands on: settings, database, storage, broker, launcher, and whether it is stopping."""

from __future__ import annotations

import logging
import queue as queues
import threading
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.db.engine import is_unavailable, make_sync_engine, sync_sessions
from app.queue import JOBS, Publisher
from app.settings import Settings
from app.storage.interface import Storage
from app.storage.registry import open_storage
from worker.child import DEFAULT_ENTRY
from worker.ending import mark_sent
from worker.launchers import LauncherKeeper

_log = logging.getLogger(__name__)

NUM_INSPECTIONS = 2
"""Uploads that are inspected at once, beside the jobs."""


@dataclass
class Node:
    """Shared by the tasks, the reaper and the signal handlers of a worker process."""

    settings: Settings
    name: str
    queue: str
    database: Engine
    writes: sessionmaker[Session]
    reads: sessionmaker[Session]
    storage: Storage
    publisher: Publisher
    entry: str = DEFAULT_ENTRY
    launcher: LauncherKeeper | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    slots: queues.SimpleQueue[int] = field(default_factory=queues.SimpleQueue)

    @classmethod
    def open(cls, settings: Settings, name: str, queue: str, entry: str = DEFAULT_ENTRY) -> Self:
        """Connects to nothing yet."""
        database = make_sync_engine(settings.resolved_database_url)
        settings.work_dir.mkdir(parents=True, exist_ok=True)
        node = cls(
            settings=settings,
            name=name,
            queue=queue,
            database=database,
            writes=sync_sessions(database),
            reads=sync_sessions(database.execution_options(sqlite_read=True)),
            storage=open_storage(settings.resolved_storage_url),
            publisher=Publisher(settings),
            entry=entry,
        )
        for slot in range(node.num_slots):
            node.slots.put(slot)
        return node

    @property
    def num_slots(self) -> int:
        """Attempts that run at once in this process."""
        return self.settings.concurrency if self.queue == JOBS else NUM_INSPECTIONS

    def send(self, item_id: str) -> bool:
        """Publish and remember it; what fails here is sent by the reaper."""
        if not self.publisher.send(item_id):
            return False
        try:
            with self.writes.begin() as session:
                mark_sent(session, item_id)
        except Exception as error:
            if not is_unavailable(error):
                raise
            _log.warning("sent %s, but could not note it: %s", item_id, error)
        return True

    def close(self) -> None:
        """End the launcher and the connections."""
        if self.launcher is not None:
            self.launcher.stop()
        self.database.dispose()
