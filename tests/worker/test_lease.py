"""Claims and fences on real databases, with several claimants at once."""

from __future__ import annotations

import threading
import time

import pytest

from worker.ending import End, Kept, finish, release
from worker.lease import Claim, Lease, beat, claim
from worker.recorder import parse_event, write_events


def take(node, item_id, worker="w"):
    with node.writes.begin() as session:
        return claim(session, item_id, worker)


def end(node, held, status="succeeded", **more):
    with node.writes.begin() as session:
        return finish(session, held, End(status, status, **more))


def give_up(node, held, outcome="worker_lost"):
    with node.writes.begin() as session:
        return release(session, held, outcome)


class TestClaim:
    def test_many_claimants_one_winner(self, node, world):
        jobs = [world.job() for _ in range(10)]
        won = []

        def race(name):
            won.extend((job_id, name) for job_id in jobs if take(node, job_id, name))

        threads = [threading.Thread(target=race, args=(f"w{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(job_id for job_id, _ in won) == sorted(jobs)
        for job_id, name in won:
            row = world.row(job_id)
            assert (row.status, row.attempt, row.worker) == ("running", 1, name)
            assert [a.worker for a in world.attempts(job_id)] == [name]

    @pytest.mark.parametrize("status", ["queued", "running"])
    def test_job_on_an_upload_under_inspection_is_not_taken(self, node, world, status):
        job_id = world.job(model_id=world.upload(status=status))
        assert take(node, job_id) is None
        assert world.row(job_id).attempt == 0

    def test_unknown_and_ended_rows_are_not_taken(self, node, world):
        job_id = world.job()
        end(node, take(node, job_id))
        assert take(node, job_id) is None
        assert take(node, "job_" + "0" * 26) is None


class TestFence:
    def test_stale_attempt_writes_nothing(self, node, world):
        job_id = world.job()
        stale = take(node, job_id)
        assert give_up(node, stale) == "queued"
        held = take(node, job_id, "other")
        assert held.attempt == 2
        before = world.row(job_id)
        kept = Kept("model.onnx", "model", "onnx", "0" * 64, 1)
        assert end(node, stale, artifacts=[kept]) is False
        assert give_up(node, stale) is None
        with node.writes.begin() as session:
            assert beat(session, stale) is None
            event = {"kind": "progress", "stage": "prune", "progress": 0.5, "eta_seconds": None}
            assert write_events(session, stale, [event]) is None
        after = world.row(job_id)
        assert (after.heartbeat, after.last_event, after.progress) == (before.heartbeat, before.last_event, 0.0)
        assert world.artifacts(job_id) == []
        assert end(node, held) is True

    def test_accepted_cancel_beats_a_late_success(self, node, world):
        job_id = world.job()
        held = take(node, job_id)
        world.set(job_id, cancel_requested=True)
        assert end(node, held) is False
        assert end(node, held, "cancelled") is True
        assert world.row(job_id).status == "cancelled"


class TestRelease:
    def test_third_loss_fails_the_job(self, node, world):
        job_id = world.job()
        assert [give_up(node, take(node, job_id)) for _ in range(3)] == ["queued", "queued", "failed"]
        assert world.row(job_id).error["code"] == "worker_lost"

    def test_handing_back_counts_for_nothing(self, node, world):
        job_id = world.job()
        assert [give_up(node, take(node, job_id), "handed_back") for _ in range(6)] == ["queued"] * 6
        assert world.row(job_id).attempt == 6

    def test_cancelled_job_does_not_go_back(self, node, world):
        job_id = world.job()
        held = take(node, job_id)
        world.set(job_id, cancel_requested=True)
        assert give_up(node, held) == "cancelled"

    def test_upload_that_kills_its_worker_is_rejected_in_the_end(self, node, world):
        model_id = world.upload()
        assert [give_up(node, take(node, model_id)) for _ in range(3)] == ["queued", "queued", "rejected"]


class TestLeaseThread:
    @pytest.fixture
    def fast(self, monkeypatch):
        monkeypatch.setattr("worker.lease.BEAT_SECONDS", 0.1)
        monkeypatch.setattr("worker.lease.CANCEL_CHECK_SECONDS", 0.05)

    def test_beats_are_counted_and_relayed(self, node, world, fast):
        job_id = world.job()
        held, beats = take(node, job_id), []
        before = world.row(job_id).heartbeat
        with Lease(held, node.writes, node.reads, lambda: beats.append(1)):
            time.sleep(1)
        assert len(beats) >= 3
        assert world.row(job_id).heartbeat >= before + len(beats)

    def test_loss_and_cancel_are_noticed(self, node, world, fast):
        lost, cancelled = world.job(), world.job()
        first, second = take(node, lost), take(node, cancelled)
        with (
            Lease(first, node.writes, node.reads, lambda: None) as one,
            Lease(second, node.writes, node.reads, lambda: None) as two,
        ):
            give_up(node, first)
            world.set(cancelled, cancel_requested=True)
            time.sleep(0.6)
            assert (one.is_lost, one.is_cancelled) == (True, False)
            assert (two.is_lost, two.is_cancelled) == (False, True)


class TestEvents:
    def write(self, node, held, lines):
        events = [event for line in lines if (event := parse_event(line))]
        with node.writes.begin() as session:
            assert write_events(session, held, events) is False

    def test_batch_is_stored_in_order_and_progress_is_thinned(self, node, world):
        job_id = world.job()
        lines = [b'{"kind": "progress", "stage": "prune", "progress": %.1f}' % (i / 10) for i in range(5)]
        lines.append(b'{"kind": "metric", "name": "loss", "step": 3, "stage": "distill", "value": NaN}')
        lines.append(b'{"kind": "log", "level": "info", "message": "a\\u0000b"}')
        self.write(node, take(node, job_id), lines)
        _, progress, metric, log = world.events(job_id)
        assert (progress.data["progress"], metric.data["value"], log.data["message"]) == (0.4, None, "ab")
        assert (world.row(job_id).stage, world.row(job_id).progress) == ("prune", 0.4)

    @pytest.mark.parametrize(
        "line",
        [
            b"", b"nonsense", b"[]", b'{"kind": "status", "status": "succeeded"}', b'{"kind": "metric"}',
            b'{"kind": "progress", "stage": "x", "progress": "much"}' * 2, b"[" * 4000,
        ],
    )  # fmt: skip
    def test_what_is_no_event_is_dropped(self, line):
        assert parse_event(line) is None


def test_claim_knows_its_table():
    assert Claim("job_x", 1).is_job and not Claim("mdl_x", 1).is_job
