"""`/v1/models`: upload, look at, download, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.api.dependencies import KeyDep, Services, ServicesDep
from app.api.documentation import PROBLEMS, body_schema
from app.api.downloads import Download, download
from app.api.filenames import display_name
from app.api.forms import is_multipart, missing_file, read_form
from app.api.idempotency import Answer, IdempotencyKey
from app.api.json_bodies import is_json, parse_json, read_json, unsupported_media, validate
from app.api.parameters import NoQuery, Paging, Waiting, WaitParameters
from app.api.raw_uploads import read_raw
from app.api.schemas import ListOf, json_response, plain
from app.api.settling import settled_answer, settled_row
from app.api.staging import StagedFile
from app.api.uploaded_rows import StoredFile
from app.models import service
from app.models.formats import tell_format
from app.models.schemas import Layer, ModelFromArtifact, ModelRead
from app.spec.inputs import SignatureRow
from app.spec.strict import SpecModel
from app.tables import ModelRow

router = APIRouter(prefix="/v1/models", tags=["models"], responses=PROBLEMS)


class SignatureField(SpecModel):
    """The field `inputs` of an upload."""

    inputs: list[SignatureRow] = Field(min_length=1, max_length=64)


class RawUploadParameters(WaitParameters):
    """What an upload by PUT may say in its query."""

    inputs: str | None = Field(
        default=None, max_length=65536, description="JSON signature, needed for TorchScript alone."
    )


def read_signature(text: str | None) -> list[dict[str, Any]] | None:
    """A signature from its JSON text; raises what a JSON body would, pointing at `/inputs`."""
    if text is None or not text.strip():
        return None
    checked = validate({"inputs": parse_json(text)}, SignatureField)
    return [entry.model_dump(mode="json") for entry in checked.inputs]


async def stored_model(file: StagedFile) -> StoredFile:
    """A staged file as a model's file; refuses what is certainly no network."""
    kind = await file.look(tell_format, file.name)
    return StoredFile(display_name(file.name, "model"), kind, file.sha256, file.size_bytes)


@router.post(
    "",
    status_code=201,
    response_model=ModelRead,
    summary="Upload a network, or make one of a job's output",
    responses={200: {"model": ModelRead, "description": "These bytes with this signature were there already."}},
    openapi_extra=body_schema(
        form={"file": "binary", "name": "string", "inputs": "string"}, required=["file"], json=ModelFromArtifact
    ),
)
async def create_model(request: Request, services: ServicesDep, key: KeyDep, waiting: Waiting) -> Response:
    """Send the file as `file`: `curl -F file=@model.onnx URL/v1/models`.

    TorchScript does not carry its input shapes: give them as `inputs`, for example
    `[{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}]`. For ONNX, `inputs` may fix free dimensions.
    With a JSON body, `{"job_id", "artifact"}` makes a model of what a job produced.
    """
    with services.keys.hold(key):
        if is_json(request):
            answer = await _create_from_artifact(request, services, key)
        elif is_multipart(request):
            answer = await _create_from_form(request, services, key)
        else:
            raise unsupported_media("multipart/form-data", "application/json")
        await services.wake(answer)
    return await settled_answer(services, answer, service.read_model, ModelRead.of, waiting.seconds)


@router.put("/", include_in_schema=False)  # curl -T - URL/v1/models/ names no file
@router.put(
    "/{filename}",
    status_code=201,
    response_model=ModelRead,
    summary="Upload a network as the raw body",
    responses={200: {"model": ModelRead, "description": "These bytes with this signature were there already."}},
    openapi_extra=body_schema(raw=True),
)
async def upload_model(
    request: Request, services: ServicesDep, query: Annotated[RawUploadParameters, Query()], filename: str = ""
) -> Response:
    """`curl -T model.onnx URL/v1/models/` sends exactly this."""
    signature = read_signature(query.inputs)
    async with services.staging() as staging:
        staged = await read_raw(request, staging, filename)
        file = await stored_model(staged)
        await staging.commit()
        answer = await services.database.write(_register, file, signature, None, None)
    await services.wake(answer)
    return await settled_answer(services, answer, service.read_model, ModelRead.of, query.seconds)


@router.get("", response_model=ListOf[ModelRead], summary="List networks, newest first")
async def list_models(services: ServicesDep, paging: Paging) -> Response:
    """A page of networks."""
    page = await services.database.read(service.list_models, paging.request("models"))
    return json_response(ListOf[ModelRead](data=[ModelRead.of(row) for row in page.data], next_cursor=page.next_cursor))


@router.get("/{model_id}", response_model=ModelRead, summary="Look at a network")
async def read_model(services: ServicesDep, model_id: str, waiting: Waiting) -> Response:
    """The facts that inspection found. With `wait`, answers as soon as inspection has ended."""
    row = await settled_row(services, service.read_model, model_id, waiting.seconds)
    return json_response(ModelRead.of(row))


@router.get("/{model_id}/layers", response_model=ListOf[Layer], summary="What can be pruned, and what not and why")
async def list_layers(services: ServicesDep, model_id: str, paging: Paging) -> Response:
    """One row per weight-bearing node, in graph order."""
    page = await services.database.read(service.list_layers, model_id, paging.request("layers", model_id))
    return json_response(ListOf[Layer](data=page.data, next_cursor=page.next_cursor))


@router.head("/{model_id}/content", include_in_schema=False)
@router.get("/{model_id}/content", response_class=Response, summary="Download the file as it was uploaded")
async def download_content(request: Request, services: ServicesDep, model_id: str) -> Response:
    """The bytes as uploaded; ranges and validators work, so that `curl -C - -o FILE` resumes."""
    row = await services.database.read(service.read_model, model_id)
    return await download(request, services.storage, Download(row.sha256, row.name, row.format))


@router.delete("/{model_id}", status_code=204, summary="Delete a network")
async def delete_model(services: ServicesDep, model_id: str, _query: NoQuery) -> Response:
    """409 `in_use` while a job that has not ended needs it. Its bytes are removed within about an hour."""
    await services.database.write(service.delete_model, model_id)
    return Response(status_code=204)


async def _create_from_form(request: Request, services: Services, key: IdempotencyKey | None) -> Answer:
    async with services.staging() as staging:
        form = await read_form(request, staging, files=("file",), texts=("name", "inputs"))
        if "file" not in form.files:
            raise missing_file("file")
        signature = read_signature(form.text("inputs"))
        file = (await stored_model(form.files["file"])).renamed(form.text("name"))
        await staging.commit()
        return await services.database.write(_register, file, signature, key, form.fingerprint())


async def _create_from_artifact(request: Request, services: Services, key: IdempotencyKey | None) -> Answer:
    body = await read_json(request, ModelFromArtifact)

    def create(session: Any) -> Answer:
        def produce() -> Answer:
            touch = services.storage.touch
            return _answer(*service.register_artifact(session, body.job_id, body.artifact, body.name, touch))

        return key.run(session, body.model_dump(), produce) if key else produce()

    return await services.database.write(create)


def _register(
    session: Any, file: StoredFile, signature: list[dict[str, Any]] | None, key: IdempotencyKey | None, sent: Any
) -> Answer:
    def produce() -> Answer:
        return _answer(*service.register_model(session, file, signature))

    return key.run(session, sent, produce) if key else produce()


def _answer(row: ModelRow, is_new: bool) -> Answer:
    wake = (row.id,) if is_new else ()
    return Answer(201 if is_new else 200, plain(ModelRead.of(row)), {"Location": f"/v1/models/{row.id}"}, wake)
