"""Jobs: ordering them in every way, looking at them, ending them."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from app.tables import JobRow, ModelRow
from tests.app.service import ONNX, Service, npz, problem, torchscript

PRUNE = {"prune": {"target": {"macs": "50%"}}}
DISTILL = {"version": 1, "steps": [PRUNE, {"distill": {"epochs": 1}}]}


class TestCreateJob:
    def test_creation_says_where_to_look(self, service: Service):
        data = service.ready_dataset()
        answer = service.post(
            "/v1/jobs",
            json={
                "model": service.ready_model(),
                "dataset": data,
                "spec": DISTILL,
                "name": "n",
                "metadata": {"team": "a", "n": 1, "x": None},
            },
        )
        job = answer.json()
        assert (
            answer.status_code == 202
            and answer.headers["retry-after"]
            and answer.headers["location"] == f"/v1/jobs/{job['id']}"
        )
        assert (job["object"], job["status"], job["queue_position"], job["attempt"]) == ("job", "queued", 1, 0)
        assert job["metadata"] == {"team": "a", "n": 1, "x": None} and job["name"] == "n" and job["dataset"] == data
        assert job["spec"]["steps"][0]["prune"]["structure"] == "channels" and job["spec"]["task"] == "classification"
        assert job["progress"] == 0 and job["result"] is None and job["warnings"] == []

    def test_no_spec_is_half_of_the_macs(self, service: Service):
        assert service.job()["spec"]["steps"][0]["prune"]["target"]["macs"] == "50%"

    @pytest.mark.parametrize(
        ("change", "pointer"),
        [
            ({"stepz": []}, "/spec/stepz"),
            ({"steps": [{"prune": {"target": {"macs": "50%"}, "criterium": "l1"}}]}, "/spec/steps/0/prune/criterium"),
            ({"steps": [{"prune": {"target": {"macs": "150%"}}}]}, "/spec/steps/0/prune/target/macs"),
            ({"steps": [{"distill": {"epochs": -1}}]}, "/spec/steps/0/distill/epochs"),
            ({"steps": []}, "/spec/steps"),
            ({"version": 2}, "/spec/version"),
            ({"seed": "x"}, "/spec/seed"),
        ],
    )
    def test_a_wrong_spec_points_at_the_field(self, service: Service, change, pointer):
        answer = service.post("/v1/jobs", json={"model": service.ready_model(), "spec": DISTILL | change})
        assert pointer in [e["pointer"] for e in problem(answer, 422)["errors"]]

    def test_what_needs_data_or_labels_is_told_at_once(self, service: Service):
        model = service.ready_model()
        problem(service.post("/v1/jobs", json={"model": model, "spec": DISTILL}), 422, "data_needed")
        unlabelled = service.ready_dataset(fields=[{"name": "x", "dtype": "float32", "shape": [10, 1, 8, 8]}])
        spec = {"version": 1, "steps": [{"finetune": {"epochs": 1}}]}
        problem(
            service.post("/v1/jobs", json={"model": model, "dataset": unlabelled, "spec": spec}), 422, "labels_needed"
        )

    def test_data_that_do_not_fit_are_told_at_once(self, service: Service):
        data = service.ready_dataset(fields=[{"name": "x", "dtype": "float32", "shape": [10, 3, 9, 9]}])
        problem(service.post("/v1/jobs", json={"model": service.ready_model(), "dataset": data}), 422, "data_mismatch")

    @pytest.mark.parametrize("is_ready", [True, False])
    def test_torchscript_without_any_signature_asks_for_one(self, service: Service, is_ready):
        upload = service.ready_model if is_ready else lambda *a: service.upload(*a)["id"]
        model = upload(torchscript(), "net.pt")
        problem(service.post("/v1/jobs", json={"model": model}), 422, "signature_needed")

    def test_unknown_inputs_are_pointed_at(self, service: Service):
        body = problem(service.post("/v1/jobs", json={"model": "mdl_nothing"}), 404, "not_found")
        assert body["errors"][0]["pointer"] == "/model"
        body = problem(
            service.post("/v1/jobs", json={"model": service.ready_model(), "dataset": "dst_x"}), 404, "not_found"
        )
        assert body["errors"][0]["pointer"] == "/dataset"

    def test_a_rejected_model_is_a_conflict(self, service: Service):
        model = service.ready_model()
        with service.sessions.begin() as session:
            row = session.get_one(ModelRow, model)
            row.status, row.error = (
                "rejected",
                {"code": "malformed_model", "detail": "cut off", "hint": None, "class": "user"},
            )
        problem(service.post("/v1/jobs", json={"model": model}), 409, "model_not_ready")

    @pytest.mark.parametrize(
        "metadata",
        [{str(i): 1 for i in range(10_000)}, {"a": "x" * 100_000}, {"k" * 1000: 1}, {"a": {}}, {"a": 10**30}, [], "x"],
    )
    def test_metadata_is_small_and_flat(self, service: Service, metadata):
        problem(service.post("/v1/jobs", json={"model": service.ready_model(), "metadata": metadata}), 422)

    def test_script_in_metadata_stays_text(self, service: Service):
        job = service.job(metadata={"a": "<script>alert(1)</script>"})
        answer = service.get(f"/v1/jobs/{job['id']}")
        assert (
            answer.headers["content-type"] == "application/json"
            and answer.headers["x-content-type-options"] == "nosniff"
        )

    def test_a_form_brings_its_files(self, service: Service):
        files = {
            "model": ("net.onnx", ONNX),
            "dataset": ("data.npz", npz()),
            "spec": ("s.yaml", b"version: 1\nsteps: [{prune: {target: {macs: 60%}}}]"),
        }
        answer = service.post("/v1/jobs", files=files, data={"name": "one line", "metadata": '{"a": 1}'})
        job = answer.json()
        assert (
            answer.status_code == 202
            and job["status"] == "queued"
            and job["name"] == "one line"
            and job["metadata"] == {"a": 1}
        )
        assert job["spec"]["steps"][0]["prune"]["target"]["macs"] == "60%"
        assert service.get(f"/v1/models/{job['model']}").json()["status"] == "inspecting"

    def test_a_form_may_name_what_is_there(self, service: Service):
        model = service.ready_model()
        answer = service.post(
            "/v1/jobs",
            files={"dataset": ("data.npz", npz())},
            data={"model": model, "spec": json.dumps({"version": 1})},
        )
        assert answer.status_code == 202 and answer.json()["model"] == model

    @pytest.mark.parametrize(
        ("spec", "status", "code"),
        [
            (b"a: [", 400, "invalid_yaml"),
            (b"{,}", 400, "invalid_json"),
            (b"\xff", 400, "invalid_yaml"),
            (b"steps: !!python/object:x {}", 400, "invalid_yaml"),
            (b"seed: .nan", 422, "non_finite_number"),
            (b"a: &a [1]\nb: *a", 400, "invalid_yaml"),
            (b"sede: 1", 422, "unknown_field"),
            (b'seed: "a\\0"', 422, "invalid_string"),
            (b"- 1", 422, None),
            (b"2026-01-01", 422, None),
            (b"1: 2", 422, None),
            (b"x" * (1 << 21), 413, "body_too_large"),
            (b"seed: 1\nseed: 2", 400, "invalid_yaml"),
            (b"? [1]\n: 2", 400, "invalid_yaml"),
            (b"seed: 0x" + b"f" * 6000, 422, None),
            (b"seed: 1_0", 422, None),
        ],
    )
    def test_a_broken_spec_in_a_form_keeps_nothing(self, service: Service, spec, status, code):
        answer = service.post("/v1/jobs", files={"model": ("net.onnx", ONNX), "spec": ("s", spec)})
        assert answer.status_code == status or (b"1_0" in spec and answer.status_code == 202), answer.text
        if answer.status_code != 202:
            problem(answer, status, code)
            assert service.get("/v1/models").json()["data"] == []

    def test_a_form_that_needs_data_is_told_at_once(self, service: Service):
        answer = service.post("/v1/jobs", files={"model": ("net.onnx", ONNX)}, data={"spec": json.dumps(DISTILL)})
        problem(answer, 422, "data_needed")

    def test_the_event_is_there_with_the_job(self, service: Service):
        job = service.job()
        events = service.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": "application/json"}).json()["data"]
        assert [(e["id"], e["event"], e["data"]["status"]) for e in events] == [(1, "status", "queued")]


class TestListJobs:
    def test_filters_and_positions(self, service: Service):
        model = service.ready_model()
        jobs = [service.job(model)["id"] for _ in range(3)]
        service.start(jobs[0])
        rows = service.get("/v1/jobs").json()["data"]
        assert [(r["id"], r["status"], r["queue_position"]) for r in rows] == [
            (jobs[2], "queued", 2),
            (jobs[1], "queued", 1),
            (jobs[0], "running", None),
        ]
        assert [r["id"] for r in service.get("/v1/jobs?status=running").json()["data"]] == [jobs[0]]
        assert service.get(f"/v1/jobs/{jobs[2]}").json()["queue_position"] == 2
        assert len(service.get(f"/v1/jobs?model={model}").json()["data"]) == 3
        assert service.get("/v1/jobs?model=mdl_x").json()["data"] == []
        service.post(f"/v1/jobs/{jobs[0]}/cancel")
        assert [r["id"] for r in service.get("/v1/jobs?status=cancelling").json()["data"]] == [jobs[0]]

    def test_a_cursor_is_bound_to_its_filters(self, service: Service):
        model = service.ready_model()
        for _ in range(3):
            service.job(model)
        cursor = service.get("/v1/jobs?limit=1&status=queued").json()["next_cursor"]
        assert service.get(f"/v1/jobs?limit=1&status=queued&cursor={cursor}").status_code == 200
        problem(service.get(f"/v1/jobs?limit=1&cursor={cursor}"), 400, "invalid_cursor")

    def test_pages_lose_and_repeat_nothing_while_jobs_arrive(self, service: Service):
        model = service.ready_model()
        first = [service.job(model)["id"] for _ in range(5)]
        seen, cursor = [], ""
        while cursor is not None:
            page = service.get(f"/v1/jobs?limit=2&cursor={cursor}").json()
            seen += [row["id"] for row in page["data"]]
            cursor = page["next_cursor"]
            service.job(model)
            assert len(seen) < 50
        assert seen == first[::-1]


class TestReadJob:
    def test_wait_answers_within_a_fifth_of_a_second_of_the_end(self, service: Service):
        job = service.job()["id"]
        service.start(job)

        async def measure() -> float:
            waiting = asyncio.create_task(service.client.get(f"/v1/jobs/{job}?wait=20"))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            await asyncio.to_thread(service.end, job)
            ended = time.monotonic()
            assert (await waiting).json()["status"] == "succeeded"
            return time.monotonic() - ended

        assert service.runner.run(measure()) < 0.2

    def test_wait_gives_up_after_its_time(self, service: Service):
        began = time.monotonic()
        assert service.get(f"/v1/jobs/{service.job()['id']}?wait=0.3").json()["status"] == "queued"
        assert 0.3 <= time.monotonic() - began < 1

    def test_waiting_costs_one_poller_and_no_session(self, service: Service):
        jobs = [service.job()["id"] for _ in range(3)]

        async def many() -> int:
            waiting = [asyncio.create_task(service.client.get(f"/v1/jobs/{jobs[i % 3]}?wait=30")) for i in range(150)]
            watcher, pool = service.app.state.services.watcher, service.app.state.services.database._engine.pool
            for _ in range(200):
                if len(watcher._waiters) == len(waiting):  # all of them have read their job once
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
            busy = pool.checkedout()
            for job in jobs:
                await asyncio.to_thread(service.end, job)
            answers = await asyncio.gather(*waiting)
            assert all(answer.json()["status"] == "succeeded" for answer in answers)
            return busy

        assert service.runner.run(many()) <= 1

    def test_a_stopping_server_lets_waiters_go(self, service: Service):
        job = service.job()["id"]

        async def stop() -> str:
            waiting = asyncio.create_task(service.client.get(f"/v1/jobs/{job}?wait=30"))
            await asyncio.sleep(0.2)
            service.app.state.services.watcher.stop()
            return (await asyncio.wait_for(waiting, 1)).json()["status"]

        assert service.runner.run(stop()) == "queued"


class TestCancelJob:
    def test_a_queued_job_is_cancelled_at_once(self, service: Service):
        job = service.job()["id"]
        answer = service.post(f"/v1/jobs/{job}/cancel")
        assert answer.status_code == 202 and answer.json()["status"] == "cancelled" and answer.json()["finished_at"]
        assert service.post(f"/v1/jobs/{job}/cancel").status_code == 200

    def test_a_running_job_is_asked_once(self, service: Service):
        job = service.job()["id"]
        service.start(job)
        assert service.post(f"/v1/jobs/{job}/cancel").json()["status"] == "cancelling"
        assert service.post(f"/v1/jobs/{job}/cancel").status_code == 200
        with service.sessions() as session:
            row = session.get_one(JobRow, job)
            assert row.status == "running" and row.cancel_requested and row.last_event == 3

    def test_an_ended_job_stays_as_it_is(self, service: Service):
        job = service.job()["id"]
        service.end(job)
        problem(service.post(f"/v1/jobs/{job}/cancel"), 409, "job_already_terminal")
        assert service.get(f"/v1/jobs/{job}").json()["status"] == "succeeded"

    def test_an_unknown_job_is_not_found(self, service: Service):
        problem(service.post("/v1/jobs/job_x/cancel"), 404, "not_found")

    def test_a_race_with_the_end_has_one_winner(self, service: Service):
        model = service.ready_model()
        for _ in range(20):
            job = service.job(model)["id"]
            service.start(job)

            async def race(job: str = job) -> None:
                await asyncio.gather(service.client.post(f"/v1/jobs/{job}/cancel"), asyncio.to_thread(service.end, job))

            service.runner.run(race())
            events = service.get(f"/v1/jobs/{job}/events", headers={"Accept": "application/json"}).json()["data"]
            ends = [e for e in events if e["event"] == "status" and e["data"]["status"] in ("succeeded", "cancelled")]
            assert len(ends) == 1 and [e["id"] for e in events] == list(range(1, len(events) + 1))


class TestDeleteJob:
    def test_an_ended_job_goes_with_everything(self, service: Service):
        job = service.job()["id"]
        problem(service.delete(f"/v1/jobs/{job}"), 409, "job_not_finished")
        service.end(job, model_onnx=b"x")
        assert service.delete(f"/v1/jobs/{job}").status_code == 204
        problem(service.get(f"/v1/jobs/{job}"), 404, "not_found")
        problem(service.get(f"/v1/jobs/{job}/artifacts/model.onnx"), 404, "not_found")
        problem(service.get(f"/v1/jobs/{job}/events"), 404, "not_found")


class TestMetrics:
    def test_they_are_series(self, service: Service):
        job = service.job()["id"]
        assert service.get(f"/v1/jobs/{job}/metrics").json() == {}
        service.end(job)
        (point,) = service.get(f"/v1/jobs/{job}/metrics").json()["loss"]
        assert (point["step"], point["stage"], point["value"]) == (1, "distill", 0.5) and point["at"].endswith("Z")
