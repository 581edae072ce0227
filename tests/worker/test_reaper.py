"""Dead leases by observation, lost messages, scratch folders; the broker is a real Redis."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from app.queue import Publisher
from app.settings import Settings
from app.tables import utc_now
from worker.lease import beat, claim
from worker.reaper import Observer, Reaper, sweep_folders


@pytest.fixture
def reaper(node, redis_url):
    node.publisher = Publisher(Settings(broker_url=redis_url))
    return Reaper(node)


def take(node, item_id, worker="w"):
    with node.writes.begin() as session:
        return claim(session, item_id, worker)


class TestObserver:
    def test_counter_that_stands_still_is_dead_after_its_time(self):
        observer = Observer(30)
        looks = [observer.look([("job_a", 1, 7), ("job_b", 1, i)], i * 5.0) for i in range(8)]
        assert [len(dead) for dead in looks] == [0, 0, 0, 0, 0, 0, 1, 1]
        assert looks[6][0].item_id == "job_a"

    def test_new_attempt_starts_a_new_count(self):
        observer = Observer(30)
        for i in range(6):
            observer.look([("job_a", 1, 7)], i * 5.0)
        assert observer.look([("job_a", 2, 7)], 30.0) == []

    def test_frozen_reaper_frees_nobody_when_it_wakes(self):
        observer = Observer(30)
        observer.look([("job_a", 1, 7)], 0.0)
        assert observer.look([("job_a", 1, 7)], 3600.0) == []


class TestReaper:
    def test_dead_lease_goes_back_and_is_sent(self, node, world, reaper, monkeypatch):
        monkeypatch.setattr("worker.reaper.PERIOD_SECONDS", 100.0)
        reaper._observer = Observer(0.5)
        dead, live = world.job(), world.job()
        take(node, dead)
        held = take(node, live)
        for _ in range(4):
            reaper.look()
            time.sleep(0.25)
            with node.writes.begin() as session:
                beat(session, held)
        assert (world.row(dead).status, world.row(live).status) == ("queued", "running")
        assert world.row(dead).sent_at is not None
        assert node.publisher.num_waiting("jobs") == 1
        assert [a.outcome for a in world.attempts(dead)] == ["worker_lost"]

    def test_known_dead_workers_are_freed_at_once(self, node, world, reaper):
        mine, other = world.job(), world.job()
        take(node, mine, "dead")
        take(node, other, "alive")
        reaper.free(["dead"])
        assert (world.row(mine).status, world.row(other).status) == ("queued", "running")
        reaper.free(None)
        assert world.row(other).status == "queued"

    def test_unsent_rows_are_sent(self, node, world, reaper):
        job_id, model_id = world.job(), world.upload()
        waiting = world.job(model_id=model_id)
        reaper.look()
        assert (node.publisher.num_waiting("jobs"), node.publisher.num_waiting("inspections")) == (1, 1)
        assert world.row(job_id).sent_at and world.row(model_id).sent_at and not world.row(waiting).sent_at

    def test_only_messages_that_are_gone_are_sent_again(self, node, world, reaper):
        jobs = [world.job() for _ in range(5)]
        for i, job_id in enumerate(jobs):
            world.set(job_id, sent_at=utc_now() - dt.timedelta(seconds=60 - i))
        for job_id in jobs[2:]:
            node.publisher.send(job_id)
        reaper.look()
        assert node.publisher.num_waiting("jobs") == 5
        is_fresh = [utc_now() - world.row(job_id).sent_at < dt.timedelta(seconds=10) for job_id in jobs]
        assert is_fresh == [True, True, False, False, False]
        reaper.look()
        assert node.publisher.num_waiting("jobs") == 5

    def test_broker_that_is_away_changes_nothing(self, node, world):
        node.publisher = Publisher(Settings(broker_url="redis://127.0.0.1:1/0"))
        job_id = world.job()
        began = time.monotonic()
        Reaper(node).look()
        assert world.row(job_id).sent_at is None
        assert time.monotonic() - began < 2


def test_scratch_of_dead_attempts_is_swept_and_live_ones_stay(node, world):
    ended, live = world.job(), world.job()
    held = take(node, live)
    root = node.settings.work_dir
    stale = [f"{ended}-1", f"{live}-7", f"job_{'0' * 26}-checkpoints"]
    kept = [f"{live}-{held.attempt}", f"{live}-checkpoints", f"{ended}-checkpoints", "somebody-elses"]
    for name in stale + kept:
        (root / name / "input").mkdir(parents=True)
    sweep_folders(node)
    assert sorted(p.name for p in root.iterdir()) == sorted(kept)
