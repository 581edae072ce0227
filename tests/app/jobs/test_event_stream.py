"""The event stream: whole, resumable, and at an end with its job."""

from __future__ import annotations

import asyncio

import pytest

from app.jobs import event_stream
from tests.app.service import Service, problem

SSE = {"Accept": "text/event-stream"}


def parse(text: str) -> list[tuple[int, str]]:
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "id: " in block
    ]
    return [(int(block["id"]), block["event"]) for block in blocks]


class TestFollowJob:
    def test_an_ended_job_tells_its_whole_story(self, service: Service):
        job = service.job()["id"]
        service.start(job)
        service.end(job)
        answer = service.get(f"/v1/jobs/{job}/events", headers=SSE)
        assert (
            answer.headers["content-type"].startswith("text/event-stream")
            and answer.headers["cache-control"] == "no-store"
        )
        assert parse(answer.text) == [(1, "status"), (2, "status"), (3, "metric"), (4, "progress"), (5, "status")]

    def test_the_last_event_id_resumes(self, service: Service):
        job = service.job()["id"]
        service.end(job)
        for given, rest in (("2", [3, 4]), ("4", []), ("9" * 40, [])):
            answer = service.get(f"/v1/jobs/{job}/events", headers={**SSE, "Last-Event-ID": given})
            assert [number for number, _ in parse(answer.text)] == rest

    @pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 41, "²"])
    def test_a_foreign_event_id_is_refused(self, service: Service, given):
        headers = {**SSE, "Last-Event-ID": given.encode()}
        problem(service.get(f"/v1/jobs/{service.job()['id']}/events", headers=headers), 400, "invalid_last_event_id")

    def test_events_come_as_they_are_written_and_end_with_the_job(self, service: Service):
        job = service.job()["id"]

        async def follow() -> str:
            reading = asyncio.create_task(service.client.get(f"/v1/jobs/{job}/events", headers=SSE))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(service.start, job)
            await asyncio.sleep(0.2)
            assert not reading.done()
            await asyncio.to_thread(service.end, job)
            return (await asyncio.wait_for(reading, 2)).text

        assert [number for number, _ in parse(service.runner.run(follow()))] == [1, 2, 3, 4, 5]

    def test_a_silent_job_gets_heartbeats(self, service: Service, monkeypatch):
        monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.1)
        job = service.job()["id"]

        async def follow() -> str:
            reading = asyncio.create_task(service.client.get(f"/v1/jobs/{job}/events", headers=SSE))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(service.end, job)
            return (await reading).text

        assert service.runner.run(follow()).count(": still here") >= 2

    def test_a_deleted_job_ends_the_stream(self, service: Service):
        job = service.job()["id"]

        async def follow() -> str:
            headers = {**SSE, "Last-Event-ID": "100"}
            reading = asyncio.create_task(service.client.get(f"/v1/jobs/{job}/events", headers=headers))
            await asyncio.sleep(0.2)
            await service.client.post(f"/v1/jobs/{job}/cancel")
            await service.client.delete(f"/v1/jobs/{job}")
            return (await asyncio.wait_for(reading, 2)).text

        assert parse(service.runner.run(follow())) == []


class TestAsJson:
    def test_pages_go_upwards(self, service: Service):
        job = service.job()["id"]
        service.end(job)
        page = service.get(f"/v1/jobs/{job}/events?limit=3", headers={"Accept": "application/json"}).json()
        rest = service.get(
            f"/v1/jobs/{job}/events?cursor={page['next_cursor']}", headers={"Accept": "application/json"}
        ).json()
        assert [e["id"] for e in page["data"]] == [1, 2, 3] and [e["id"] for e in rest["data"]] == [4]
        assert rest["next_cursor"] is None and rest["data"][0]["data"]["status"] == "succeeded"
