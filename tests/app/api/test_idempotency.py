"""One key, one request, one effect."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from app.tables import IdempotencyRow, JobRow
from tests.app.service import ONNX, Service, npz, problem

KEY = {"Idempotency-Key": "k-1"}


def num_jobs(service: Service) -> int:
    with service.sessions() as session:
        return session.scalar(select(func.count()).select_from(JobRow))


class TestIdempotencyKey:
    def test_the_same_request_gets_the_stored_answer(self, service: Service):
        body = {"model": service.ready_model()}
        first = service.post("/v1/jobs", json=body, headers=KEY)
        service.end(first.json()["id"])
        again = service.post(
            "/v1/jobs",
            content=b' {"model":\n"' + body["model"].encode() + b'"}',
            headers={**KEY, "Content-Type": "application/json"},
        )
        assert (
            again.status_code == 202
            and again.json() == first.json()
            and again.headers["location"] == first.headers["location"]
        )
        assert again.headers["idempotency-replayed"] == "true" and "idempotency-replayed" not in first.headers
        assert num_jobs(service) == 1

    def test_another_request_is_refused(self, service: Service):
        body = {"model": service.ready_model()}
        service.post("/v1/jobs", json=body, headers=KEY)
        problem(service.post("/v1/jobs", json=body | {"name": "another"}, headers=KEY), 422, "idempotency_key_reused")

    def test_a_form_is_known_by_its_parts(self, service: Service):
        def send(seed: int):
            return service.post(
                "/v1/jobs", files={"model": ("a.onnx", ONNX), "dataset": ("d.npz", npz(seed))}, headers=KEY
            )

        first, again = send(0), send(0)
        assert first.status_code == 202 and again.json()["id"] == first.json()["id"] and num_jobs(service) == 1
        problem(send(1), 422, "idempotency_key_reused")

    def test_many_at_once_make_one_job(self, service: Service):
        body = {"model": service.ready_model()}

        async def send() -> list:
            return await asyncio.gather(*(service.client.post("/v1/jobs", json=body, headers=KEY) for _ in range(50)))

        answers = service.runner.run(send())
        assert {a.status_code for a in answers} <= {202, 409} and num_jobs(service) == 1
        for answer in answers:
            if answer.status_code == 409:
                problem(answer, 409, "idempotency_key_in_use")
                assert answer.headers["retry-after"]

    def test_a_failed_request_keeps_no_key(self, service: Service):
        problem(service.post("/v1/jobs", json={"model": "mdl_x"}, headers=KEY), 404)
        assert service.post("/v1/jobs", json={"model": service.ready_model()}, headers=KEY).status_code == 202

    def test_keys_of_different_paths_do_not_meet(self, service: Service):
        assert service.post("/v1/models", files={"file": ("a.onnx", ONNX)}, headers=KEY).status_code == 201
        assert service.post("/v1/datasets", files={"file": ("a.npz", npz())}, headers=KEY).status_code == 201
        again = service.post("/v1/models", files={"file": ("a.onnx", ONNX)}, headers=KEY)
        assert again.status_code == 201 and again.headers["idempotency-replayed"]

    def test_a_key_of_yesterday_is_forgotten(self, service: Service):
        body = {"model": service.ready_model()}
        first = service.post("/v1/jobs", json=body, headers=KEY).json()
        with service.sessions.begin() as session:
            import datetime as dt

            row = session.scalars(select(IdempotencyRow)).one()
            row.created_at -= dt.timedelta(hours=25)
        assert service.post("/v1/jobs", json=body, headers=KEY).json()["id"] != first["id"]

    @pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é", "a\tb"])
    def test_an_odd_key_is_refused(self, service: Service, key):
        answer = service.post("/v1/jobs", json={"model": "x"}, headers={"Idempotency-Key": key.encode()})
        problem(answer, 400, "invalid_idempotency_key")
