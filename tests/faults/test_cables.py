"""`serve` on PostgreSQL and Redis of its own choosing, with the cables to them cut in the middle of a job."""

from __future__ import annotations

import os
import signal
import time
from urllib.parse import urlsplit

import pytest

from tests.faults.proxy import Proxy
from tests.faults.service import wait_for
from tests.faults.test_processes import submit
from tests.worker.conftest import REDIS, new_postgres, redis_url  # noqa: F401

pytestmark = pytest.mark.usefixtures("redis_url")


@pytest.fixture
def cabled(make_service):
    """A service, the cable to its database, the cable to its broker."""
    url, drop = new_postgres()
    parts, broker = urlsplit(url), urlsplit(REDIS)
    to_database = Proxy(parts.hostname, parts.port or 5432)
    to_broker = Proxy(broker.hostname, broker.port or 6379)
    user = parts.netloc.rpartition("@")[0]
    service = make_service(
        DATABASE_URL=parts._replace(netloc=f"{user}@127.0.0.1:{to_database.port}").geturl(),
        BROKER_URL=broker._replace(netloc=f"127.0.0.1:{to_broker.port}").geturl(),
    )
    yield service, to_database, to_broker
    service.stop()
    for proxy in (to_database, to_broker):
        proxy.close()
    drop()


def test_database_away_for_some_seconds_costs_no_attempt(cabled):
    service, to_database, _ = cabled
    job_id = submit(service, "sleep=8")
    service.until(job_id, "running")
    to_database.cut()
    time.sleep(5)
    with pytest.raises(ValueError, match=" 503 "):
        service.job(job_id)
    to_database.mend()
    wait_for(lambda: service.is_ready(), 20)
    job = service.ended(job_id, 60)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)


def test_database_away_at_the_end_of_a_job_delays_the_end(cabled):
    service, to_database, _ = cabled
    job_id = submit(service, "sleep=2")
    service.until(job_id, "running")
    to_database.cut()
    time.sleep(6)
    to_database.mend()
    wait_for(lambda: service.is_ready(), 20)
    job = service.ended(job_id, 60)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert len(service.call("GET", f"/v1/jobs/{job_id}/artifacts")["data"]) == 1


def test_message_delivered_again_after_a_cut_is_absorbed(cabled):
    service, _, to_broker = cabled
    job_id = submit(service, "sleep=6")
    service.until(job_id, "running")
    to_broker.cut()
    time.sleep(2)
    to_broker.mend()
    job = service.ended(job_id, 60)
    time.sleep(8)
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    assert service.job(job_id) == job
    assert service.ended(submit(service))["status"] == "succeeded"


def test_broker_away_at_submit_is_202_and_sent_later(cabled):
    service, _, to_broker = cabled
    model_id = service.upload("models", "net.onnx", b"\x08\x07" + os.urandom(64), "plain")
    to_broker.cut()
    began = time.monotonic()
    job_id = service.call("POST", "/v1/jobs", {"model": model_id})["id"]
    assert time.monotonic() - began < 1.5
    time.sleep(2)
    assert service.job(job_id)["status"] == "queued"
    to_broker.mend()
    assert service.ended(job_id, 30)["status"] == "succeeded"


def test_killed_worker_is_replaced_on_postgres_too(cabled):
    service, _, _ = cabled
    job_id = submit(service, "sleep=3")
    service.until(job_id, "running")
    [worker] = service.find("-m worker", "--queue jobs")
    began = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    job = service.ended(job_id, 60)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert time.monotonic() - began < 15
    wait_for(lambda: service.scratch() == [])
