"""The database away, cut off, or back again; the broker there and away: an answer each time, and never a 500."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import psycopg
import pytest
import redis
from sqlalchemy import select

from app.main import create_app
from app.settings import Settings
from app.tables import JobRow
from tests.app.service import ONNX, Service, npz, problem

REDIS = "redis://127.0.0.1:6379/9"
CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class TestDatabaseAway:
    @pytest.fixture
    def service(self, tmp_path) -> Iterator[Service]:
        settings = Settings(_env_file=None, data_dir=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/nothing")
        with asyncio.Runner() as runner:
            app = create_app(settings)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            yield Service(runner, client, app, None)
            runner.run(client.aclose())
            runner.run(app.state.services.close())

    def test_everything_that_needs_it_says_when_to_come_back(self, service: Service):
        for answer in (
            service.get("/v1/jobs"),
            service.get("/v1/models/mdl_" + "0" * 26),
            service.post("/v1/jobs", json={"model": "mdl_" + "0" * 26}),
            service.post("/v1/models", files={"file": ("a.onnx", ONNX)}),
            service.put("/v1/datasets/a.npz", content=npz()),
            service.post("/v1/compress", files={"model": ("a.onnx", ONNX)}),
            service.get("/v1/jobs/job_" + "0" * 26 + "/events"),
        ):
            problem(answer, 503, "database_unavailable")
            assert answer.headers["retry-after"]

    def test_liveness_does_not_care_and_readiness_does(self, service: Service):
        assert service.get("/livez").status_code == 200
        began = time.monotonic()
        assert not problem(service.get("/readyz"), 503, "not_ready")["checks"]["database"]["ok"]
        assert time.monotonic() - began < 4


class TestDatabaseRestarted:
    def test_cut_connections_are_replaced(self, service: Service, postgres: str):
        assert service.get("/v1/jobs").status_code == 200
        with psycopg.connect(postgres, autocommit=True) as server:
            server.execute(CUT)
        answers = [service.get("/v1/jobs").status_code for _ in range(3)]
        assert answers[1:] == [200, 200] and answers[0] in (200, 503)

    def test_who_waits_is_answered_all_the_same(self, service: Service, postgres: str):
        job = service.job()["id"]

        async def wait_through_a_cut() -> httpx.Response:
            waiting = asyncio.create_task(service.client.get(f"/v1/jobs/{job}?wait=10"))
            await asyncio.sleep(0.3)
            with psycopg.connect(postgres, autocommit=True) as server:
                server.execute(CUT)
            await asyncio.sleep(0.3)
            while True:
                if (await service.client.post(f"/v1/jobs/{job}/cancel")).status_code == 202:
                    break
            return await waiting

        assert service.runner.run(wait_through_a_cut()).json()["status"] == "cancelled"


class TestBroker:
    @pytest.fixture
    def broker(self) -> Iterator[redis.Redis]:
        client = redis.Redis.from_url(REDIS, socket_connect_timeout=1)
        try:
            client.ping()
        except redis.RedisError as error:
            pytest.skip(f"no Redis at {REDIS}: {error}")
        client.delete("jobs", "inspections")
        yield client
        client.delete("jobs", "inspections")
        client.close()

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": REDIS})

    def test_a_job_is_sent_after_its_commit_and_marked(self, service: Service, broker: redis.Redis):
        job = service.job()
        assert broker.llen("jobs") == 1 and job["id"].encode() in broker.lindex("jobs", 0)
        with service.sessions() as session:
            assert session.get_one(JobRow, job["id"]).sent_at is not None
        assert broker.llen("inspections") == 1, "the upload of its model"

    def test_a_form_sends_its_files_and_leaves_the_job_to_the_end_of_their_inspection(
        self, service: Service, broker: redis.Redis
    ):
        service.post("/v1/jobs", files={"model": ("a.onnx", ONNX), "dataset": ("d.npz", npz())})
        assert broker.llen("inspections") == 2 and broker.llen("jobs") == 0
        with service.sessions() as session:
            assert session.scalars(select(JobRow)).one().sent_at is None

    def test_a_replay_sends_nothing(self, service: Service, broker: redis.Redis):
        body = {"model": service.ready_model()}
        for _ in range(3):
            service.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
        assert broker.llen("jobs") == 1

    def test_readiness_sees_the_broker_and_misses_the_worker(self, service: Service, broker: redis.Redis):
        checks = problem(service.get("/readyz"), 503)["checks"]
        assert checks["broker"]["ok"]


class TestBrokerAway:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})

    def test_a_job_is_taken_quickly_all_the_same(self, service: Service):
        model = service.ready_model()
        began = time.monotonic()
        answer = service.post("/v1/jobs", json={"model": model})
        assert answer.status_code == 202 and time.monotonic() - began < 1.5
        with service.sessions() as session:
            assert session.get_one(JobRow, answer.json()["id"]).sent_at is None
