"""Jobs over HTTP as a client runs them: files in, the ended job and its files out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx

from examples import demo


def upload(client: httpx.Client, path: Path, inputs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The model once it is ready, with a signature where the file has none."""
    with path.open("rb") as stream:
        fields = {"inputs": json.dumps(inputs)} if inputs else {}
        row = client.post("/v1/models", files={"file": (path.name, stream)}, data=fields).raise_for_status().json()
    row = client.get(f"/v1/models/{row['id']}", params={"wait": 60}).raise_for_status().json()
    assert row["status"] == "ready", row["error"]
    return row


def run(client: httpx.Client, model: str, data: Path | None, spec: Any) -> dict[str, Any]:
    """The ended job for an uploaded model."""
    body = {"model": model, "spec": spec}
    if data:
        body["dataset"] = demo.upload(client, "datasets", data)["id"]
    job = client.post("/v1/jobs", json=body).raise_for_status().json()
    while job["status"] not in demo.ENDED:
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 60}).raise_for_status().json()
    return job


def fetch(client: httpx.Client, job: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Every file of the job by name, its digest checked."""
    found = {}
    for row in client.get(f"/v1/jobs/{job['id']}/artifacts").raise_for_status().json()["data"]:
        blob = client.get(row["url"]).raise_for_status().content
        assert hashlib.sha256(blob).hexdigest() == row["sha256"]
        found[row["name"]] = folder / row["name"]
        found[row["name"]].write_bytes(blob)
    return found
