"""`/v1/catalog`: what a spec may name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from app.api.documentation import PROBLEMS
from app.api.parameters import NoQuery
from app.spec.catalog import load_catalog

router = APIRouter(prefix="/v1/catalog", tags=["catalog"], responses=PROBLEMS)


@router.get("", response_model=dict[str, list[dict[str, Any]]], summary="What a spec may name")
async def read_catalog(_query: NoQuery) -> Response:
    """Every criterion, structure, loss and the rest: a line of help, what it `needs`, and the JSON Schema of its options."""
    return JSONResponse(load_catalog())
