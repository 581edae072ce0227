"""`/v1/datasets`: upload, look at, download, delete."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.dependencies import KeyDep, ServicesDep
from app.api.documentation import PROBLEMS, body_schema
from app.api.downloads import Download, download
from app.api.filenames import display_name
from app.api.forms import missing_file, read_form
from app.api.idempotency import Answer, IdempotencyKey
from app.api.parameters import NoQuery, Paging, Waiting
from app.api.raw_uploads import read_raw
from app.api.schemas import ListOf, json_response, plain
from app.api.settling import settled_answer, settled_row
from app.api.staging import StagedFile
from app.api.uploaded_rows import StoredFile
from app.datasets import service
from app.datasets.formats import tell_format
from app.datasets.schemas import DatasetRead

router = APIRouter(prefix="/v1/datasets", tags=["data sets"], responses=PROBLEMS)
_KNOWN: dict[int | str, dict[str, Any]] = {
    200: {"model": DatasetRead, "description": "These bytes were there already."}
}


async def stored_dataset(file: StagedFile) -> StoredFile:
    """A staged file as a data set's file; refuses what is certainly none."""
    kind = await file.look(tell_format)
    return StoredFile(display_name(file.name, "dataset"), kind, file.sha256, file.size_bytes)


@router.post(
    "",
    status_code=201,
    response_model=DatasetRead,
    summary="Upload a data set",
    responses=_KNOWN,
    openapi_extra=body_schema(form={"file": "binary", "name": "string"}, required=["file"]),
)
async def create_dataset(request: Request, services: ServicesDep, key: KeyDep, waiting: Waiting) -> Response:
    """Send the file as `file`: `curl -F file=@data.npz URL/v1/datasets`.

    Arrays are named like the model's inputs, or `x`; labels `y`. Any of them may end in `_train`, `_val`, `_test`.
    """
    with services.keys.hold(key):
        async with services.staging() as staging:
            form = await read_form(request, staging, files=("file",), texts=("name",))
            if "file" not in form.files:
                raise missing_file("file")
            file = (await stored_dataset(form.files["file"])).renamed(form.text("name"))
            await staging.commit()
            answer = await services.database.write(_register, file, key, form.fingerprint())
        await services.wake(answer)
    return await settled_answer(services, answer, service.read_dataset, DatasetRead.of, waiting.seconds)


@router.put("/", include_in_schema=False)  # curl -T - URL/v1/datasets/ names no file
@router.put(
    "/{filename}",
    status_code=201,
    response_model=DatasetRead,
    summary="Upload a data set as the raw body",
    responses=_KNOWN,
    openapi_extra=body_schema(raw=True),
)
async def upload_dataset(request: Request, services: ServicesDep, waiting: Waiting, filename: str = "") -> Response:
    """`curl -T data.npz URL/v1/datasets/` sends exactly this."""
    async with services.staging() as staging:
        file = await stored_dataset(await read_raw(request, staging, filename))
        await staging.commit()
        answer = await services.database.write(_register, file, None, None)
    await services.wake(answer)
    return await settled_answer(services, answer, service.read_dataset, DatasetRead.of, waiting.seconds)


@router.get("", response_model=ListOf[DatasetRead], summary="List data sets, newest first")
async def list_datasets(services: ServicesDep, paging: Paging) -> Response:
    """A page of data sets."""
    page = await services.database.read(service.list_datasets, paging.request("datasets"))
    rows = [DatasetRead.of(row) for row in page.data]
    return json_response(ListOf[DatasetRead](data=rows, next_cursor=page.next_cursor))


@router.get("/{dataset_id}", response_model=DatasetRead, summary="Look at a data set")
async def read_dataset(services: ServicesDep, dataset_id: str, waiting: Waiting) -> Response:
    """The arrays that inspection found. With `wait`, answers as soon as inspection has ended."""
    row = await settled_row(services, service.read_dataset, dataset_id, waiting.seconds)
    return json_response(DatasetRead.of(row))


@router.head("/{dataset_id}/content", include_in_schema=False)
@router.get("/{dataset_id}/content", response_class=Response, summary="Download the file as it was uploaded")
async def download_content(request: Request, services: ServicesDep, dataset_id: str) -> Response:
    """The bytes as uploaded; ranges and validators work, so that `curl -C - -o FILE` resumes."""
    row = await services.database.read(service.read_dataset, dataset_id)
    return await download(request, services.storage, Download(row.sha256, row.name, row.format))


@router.delete("/{dataset_id}", status_code=204, summary="Delete a data set")
async def delete_dataset(services: ServicesDep, dataset_id: str, _query: NoQuery) -> Response:
    """409 `in_use` while a job that has not ended needs it. Its bytes are removed within about an hour."""
    await services.database.write(service.delete_dataset, dataset_id)
    return Response(status_code=204)


def _register(session: Any, file: StoredFile, key: IdempotencyKey | None, sent: Any) -> Answer:
    def produce() -> Answer:
        row, is_new = service.register_dataset(session, file)
        headers = {"Location": f"/v1/datasets/{row.id}"}
        return Answer(201 if is_new else 200, plain(DatasetRead.of(row)), headers, (row.id,) if is_new else ())

    return key.run(session, sent, produce) if key else produce()
