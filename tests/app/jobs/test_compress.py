"""File to file: the network itself is the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.app.service import ONNX, Service, npz, problem


def compress(service: Service, status: str, error: dict[str, Any] | None = None, **files: bytes) -> httpx.Response:
    async def run() -> httpx.Response:
        sent = {"model": ("net.onnx", ONNX), "dataset": ("data.npz", npz())}
        waiting = asyncio.create_task(service.client.post("/v1/compress", files=sent))
        while not (jobs := (await service.client.get("/v1/jobs")).json()["data"]):  # noqa: ASYNC110 - another process would poll as well
            await asyncio.sleep(0.02)
        await asyncio.to_thread(service.end, jobs[0]["id"], status, error, **files)
        return await asyncio.wait_for(waiting, 2)

    return service.runner.run(run())


class TestCompress:
    def test_the_network_comes_back_in_its_format(self, service: Service):
        answer = compress(service, "succeeded", model_onnx=b"small", model_pt=b"other", report_json=b"{}")
        assert (
            answer.status_code == 200
            and answer.content == b"small"
            and answer.headers["location"].startswith("/v1/jobs/job_")
        )
        assert answer.headers["etag"] and "model.onnx" in answer.headers["content-disposition"]

    def test_another_format_is_given_where_only_that_was_made(self, service: Service):
        answer = compress(service, "succeeded", model_pt=b"other")
        assert answer.status_code == 200 and answer.content == b"other"

    def test_what_takes_long_leads_to_the_job(self, service: Service):
        answer = service.post("/v1/compress?wait=0.1", files={"model": ("net.onnx", ONNX)})
        assert answer.status_code == 303 and service.get(answer.headers["location"]).json()["status"] == "queued"

    @pytest.mark.parametrize(("error_class", "status"), [("user", 422), ("transient", 503), ("internal", 503)])
    def test_a_failure_is_its_problem(self, service: Service, error_class, status):
        error = {"code": "target_unreachable", "detail": "no", "hint": "ask for less", "class": error_class}
        answer = compress(service, "failed", error)
        body = problem(answer, status, "target_unreachable")
        assert body["hint"] == "ask for less" and answer.headers["location"].startswith("/v1/jobs/")
        assert status == 422 or answer.headers["retry-after"]

    def test_a_cancelled_job_is_a_problem(self, service: Service):
        problem(compress(service, "cancelled"), 422, "job_cancelled")

    def test_a_wrong_spec_is_told_before_anything_runs(self, service: Service):
        problem(service.post("/v1/compress", files={"model": ("net.onnx", ONNX)}, data={"spec": "steps: []"}), 422)

    def test_steps_that_make_no_network_are_told(self, service: Service):
        spec = '{"steps": [{"sensitivity": {}}]}'
        sent = {"model": ("net.onnx", ONNX), "dataset": ("data.npz", npz())}
        body = problem(service.post("/v1/compress", files=sent, data={"spec": spec}), 422, "no_network")
        assert body["errors"][0]["pointer"] == "/spec/steps" and "/v1/jobs" in body["hint"]
        assert service.post("/v1/jobs", files=sent, data={"spec": spec}).status_code == 202

    def test_a_repeated_key_waits_for_the_same_job(self, service: Service):
        key = {"Idempotency-Key": "k"}
        first = service.post("/v1/compress?wait=0", files={"model": ("net.onnx", ONNX)}, headers=key)
        again = service.post("/v1/compress?wait=0", files={"model": ("net.onnx", ONNX)}, headers=key)
        assert first.status_code == again.status_code == 303 and first.headers["location"] == again.headers["location"]
