"""The HTTP application. `create_app` wires it; nothing connects before the first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.routing import Route

from app.api.dependencies import Services
from app.api.documentation import add_documentation
from app.api.error_handlers import add_error_handlers
from app.api.middleware import RequestMiddleware
from app.artifacts.endpoints import router as artifacts
from app.catalog.endpoints import router as catalog
from app.datasets.endpoints import router as datasets
from app.db.database import Database
from app.health.endpoints import router as health
from app.jobs.compress import router as compress
from app.jobs.endpoints import router as jobs
from app.jobs.event_stream import Pages
from app.models.endpoints import router as models
from app.queue import Publisher
from app.settings import Settings, load_settings
from app.storage.garbage import SWEEP_AGE_SECONDS
from app.storage.registry import open_storage

ROUTERS = (models, datasets, jobs, compress, artifacts, catalog, health)


def create_app(settings: Settings | None = None, publisher: Publisher | None = None) -> FastAPI:
    """The application on these settings; the database has to be migrated (`app.db.migrate.upgrade`).

    `app.state.services.watcher.stop()` lets all waiting clients go; a server that wants to end calls it first.
    """
    settings = settings or load_settings()
    services = Services(
        settings,
        Database(settings.resolved_database_url),
        open_storage(settings.resolved_storage_url),
        publisher or Publisher(settings),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # What an API that was killed had begun to receive.
        await asyncio.to_thread(services.storage.sweep, older_than_seconds=SWEEP_AGE_SECONDS)
        yield
        await services.close()

    app = FastAPI(title="Featherweight", version=version("featherweight"), lifespan=lifespan, redirect_slashes=False)
    app.state.services = services
    app.state.event_pages = Pages()
    app.state.routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    for router in ROUTERS:
        app.include_router(router)
    add_error_handlers(app)
    add_documentation(app)
    app.add_middleware(RequestMiddleware)
    return app
