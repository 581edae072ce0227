"""`/livez`, `/readyz`, `/version`: for probes; they need no key."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from starlette.responses import Response

from app.api.dependencies import ServicesDep
from app.api.error_handlers import problem
from app.api.schemas import json_response
from app.health.schemas import Alive, Readiness, Version
from app.health.service import check_readiness

router = APIRouter(tags=["health"])


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model=Alive, summary="Does this process answer?")
async def read_liveness() -> Response:
    """Depends on nothing: a broken database is no reason to kill this process."""
    return json_response(Alive())


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Readiness, summary="Would a job that is sent now run?")
async def read_readiness(services: ServicesDep) -> Response:
    """Database, broker, storage and a live worker, each named in `checks`; 503 until all are there."""
    readiness = await check_readiness(services)
    if readiness.status == "ready":
        return json_response(readiness)
    missing = ", ".join(name for name, check in readiness.checks.items() if not check.ok)
    checks = {name: check.model_dump() for name, check in readiness.checks.items()}
    return problem(
        503, "not_ready", f"not there yet: {missing}", headers={"Retry-After": "2"}, extra={"checks": checks}
    )


@router.head("/version", include_in_schema=False)
@router.get("/version", response_model=Version, summary="What runs here")
async def read_version() -> Response:
    """The version of the service."""
    return json_response(Version(version=version("featherweight")))
