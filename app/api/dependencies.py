"""What endpoints are given: the database, the storage, the settings, the queue, and the poller for those who wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request

from app.api.glances import look
from app.api.idempotency import Answer, IdempotencyKey, KeysInFlight, read_key
from app.api.sending import mark_sent
from app.api.staging import Staging
from app.api.watcher import Watcher
from app.db.database import Database
from app.logging import get_logger
from app.queue import Publisher
from app.settings import Settings
from app.storage.interface import Storage

_log = get_logger("app.queue")


@dataclass
class Services:
    """What one process of the API shares between its requests."""

    settings: Settings
    database: Database
    storage: Storage
    publisher: Publisher
    watcher: Watcher = field(init=False)
    keys: KeysInFlight = field(default_factory=KeysInFlight)

    def __post_init__(self) -> None:
        self.watcher = Watcher(lambda ids: self.database.read(look, ids))

    def staging(self) -> Staging:
        """A place for the files of one request."""
        return Staging(self.storage, self.settings.max_upload_bytes)

    async def wake(self, answer: Answer) -> None:
        """Tell a worker of what was just committed. What the broker does not take is sent later by the reaper."""
        for item_id in answer.wake:
            if await asyncio.to_thread(self.publisher.send, item_id):
                await self.database.write(mark_sent, item_id)
            else:
                _log.warning("not_sent_yet", item_id=item_id)

    async def close(self) -> None:
        """Let waiting clients go and close the connections."""
        self.watcher.stop()
        await self.database.dispose()


def get_services(request: Request) -> Services:
    """The services of the application that a request reached."""
    services: Services = request.app.state.services
    return services


def get_idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Any text of your choice; the same key with the same request gets the stored answer for a day."
        ),
    ] = None,
) -> IdempotencyKey | None:
    """The key of a POST, bound to its path."""
    return read_key(idempotency_key, f"{request.method} {request.url.path}"[:128])


# scope="function": whatever a dependency has to end with is over before the response is sent.
ServicesDep = Annotated[Services, Depends(get_services, scope="function")]
KeyDep = Annotated[IdempotencyKey | None, Depends(get_idempotency_key, scope="function")]
