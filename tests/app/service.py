"""A client of the API under test, and the worker's side of its rows."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy.orm import Session, sessionmaker

from app.ids import new_id
from app.jobs.events import append_event
from app.tables import ArtifactRow, DatasetRow, JobRow, MetricRow, ModelRow, utc_now

ONNX = b"\x08\x08\x12\x07pytorch" + bytes(200)
PORTS = [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
FIELDS = [{"name": "x", "dtype": "float32", "shape": [100, 1, 8, 8]}, {"name": "y", "dtype": "int64", "shape": [100]}]


def npz(seed: int = 0) -> bytes:
    """A zip with one member, as far as the API looks."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("x.npy"), bytes([seed]) * 100)  # the same bytes whenever it is made
    return out.getvalue()


def torchscript(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names or ("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl", "net/version"):
            archive.writestr(name, b"x")
    return out.getvalue()


@dataclass
class Service:
    runner: asyncio.Runner
    client: httpx.AsyncClient
    app: FastAPI
    sessions: sessionmaker[Session]

    def request(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        return self.runner.run(self.client.request(method, url, **kwargs))

    def get(self, url: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", url, **kwargs)

    def post(self, url: str, **kwargs: Any) -> httpx.Response:
        return self.request("POST", url, **kwargs)

    def put(self, url: str, **kwargs: Any) -> httpx.Response:
        return self.request("PUT", url, **kwargs)

    def delete(self, url: str, **kwargs: Any) -> httpx.Response:
        return self.request("DELETE", url, **kwargs)

    def upload(self, blob: bytes = ONNX, name: str = "net.onnx", to: str = "models", **fields: Any) -> dict[str, Any]:
        data = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
        answer = self.post(f"/v1/{to}", files={"file": (name, blob)}, data=data)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def ready_model(self, blob: bytes = ONNX, name: str = "net.onnx", **fields: Any) -> str:
        model = self.upload(blob, name, **fields)
        inputs = PORTS if model["format"] == "onnx" else None
        layer = {"op": "Conv", "params": 1, "macs": 1, "prunable": True, "kept_because": None}
        with self.sessions.begin() as session:
            row = session.get_one(ModelRow, model["id"])
            row.status, row.inputs, row.outputs, row.macs, row.opset = "ready", inputs, PORTS, 123, 17
            row.layers = [{"name": f"conv{i}", **layer} for i in range(5)]
        return model["id"]

    def ready_dataset(self, blob: bytes | None = None, fields: list[dict[str, Any]] | None = None) -> str:
        data = self.upload(blob or npz(), "data.npz", "datasets")
        with self.sessions.begin() as session:
            row = session.get_one(DatasetRow, data["id"])
            row.status, row.fields, row.splits = "ready", fields or FIELDS, {"train": 100, "val": 0, "test": 0}
        return data["id"]

    def job(self, model: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.post("/v1/jobs", json={"model": model or self.ready_model(), **body})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def start(self, job_id: str) -> None:
        with self.sessions.begin() as session:
            row = session.get_one(JobRow, job_id)
            row.status, row.attempt, row.started_at = "running", 1, utc_now()
            append_event(session, job_id, "status", {"status": "running", "attempt": 1})

    def end(self, job_id: str, status: str = "succeeded", error: dict[str, Any] | None = None, **files: bytes) -> None:
        """What a worker's last transaction writes; `files` are artifacts, `model_onnx` for `model.onnx`."""
        storage = self.app.state.services.storage
        with self.sessions.begin() as session:
            for name, blob in files.items():
                writer = storage.begin()
                writer.write(blob)
                kept, name = writer.commit(), name.replace("_", ".")
                form = {"onnx": "onnx", "pt": "torchscript"}.get(name.rpartition(".")[2], "json")
                session.add(
                    ArtifactRow(
                        id=new_id("art"),
                        job_id=job_id,
                        name=name,
                        kind="model" if form != "json" else "report",
                        format=form,
                        size_bytes=kept.size_bytes,
                        sha256=kept.sha256,
                    )
                )
            session.add(MetricRow(job_id=job_id, attempt=1, name="loss", step=1, stage="distill", value=0.5))
            append_event(session, job_id, "metric", {"name": "loss", "step": 1, "stage": "distill", "value": 0.5})
            append_event(session, job_id, "progress", {"stage": "saving", "progress": 1.0, "eta_seconds": 0.0})
            row = session.get_one(JobRow, job_id)
            row.status, row.error, row.finished_at, row.progress = status, error, utc_now(), 1.0
            append_event(session, job_id, "status", {"status": status, "attempt": 1})


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The body of a problem, checked for its shape."""
    assert answer.status_code == status, answer.text[:1000]
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:200]
    body = answer.json()
    assert body["status"] == status and body["type"] and body["title"] and body["request_id"], body
    assert answer.headers["x-request-id"] == body["request_id"]
    assert code is None or body["code"] == code, body
    return body
