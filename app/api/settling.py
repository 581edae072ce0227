"""Waiting for an upload's inspection, the same for models and data sets."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.api.dependencies import Services
from app.api.idempotency import Answer
from app.api.schemas import answer_response, json_response
from app.api.uploaded_rows import INSPECTING, Upload, is_settled


async def settled_row(
    services: Services, read: Callable[[Session, str], Upload], upload_id: str, seconds: float
) -> Upload:
    """The row of an upload, held back until its inspection has ended or the time is over; raises `NotFound`."""
    row = await services.database.read(read, upload_id)
    if seconds and row.status in INSPECTING:
        await services.watcher.wait(upload_id, is_settled, seconds)
        row = await services.database.read(read, upload_id)
    return row


async def settled_answer(
    services: Services,
    answer: Answer,
    read: Callable[[Session, str], Upload],
    show: Callable[[Upload], BaseModel],
    seconds: float,
) -> Response:
    """The answer to an upload, with the row as it is once its inspection has ended or the time is over."""
    if seconds and answer.body["status"] == "inspecting":
        row = await settled_row(services, read, answer.body["id"], seconds)
        return json_response(show(row), answer.status, answer.headers)
    return answer_response(answer)
