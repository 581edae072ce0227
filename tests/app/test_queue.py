"""The publisher against a real server: up, dead, frozen, and back again."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from app.cli import broker
from app.cli.errors import StartError
from app.queue import Publisher
from app.settings import Settings


class Server:
    """The embedded broker, started by hand."""

    def __init__(self):
        try:
            self.binary = broker.find_server()
        except StartError as error:
            pytest.skip(str(error))
        self.folder = broker.make_folder()
        self.process = None

    def start(self):
        self.process = subprocess.Popen(broker.command(self.binary, self.folder))
        while not broker.is_listening(self.folder):
            time.sleep(0.01)

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server():
    server = Server()
    server.start()
    yield server
    server.end()
    for path in server.folder.iterdir():
        path.unlink()
    server.folder.rmdir()


@pytest.fixture
def publisher(server):
    return Publisher(Settings(broker_url=broker.url_of(server.folder)))


def timed(call, *arguments):
    began = time.monotonic()
    return call(*arguments), time.monotonic() - began


class TestPublisher:
    def test_sends_to_the_queue_of_the_id(self, publisher):
        assert publisher.send("job_a") and publisher.send("mdl_a") and publisher.send("dst_a")
        assert (publisher.num_waiting("jobs"), publisher.num_waiting("inspections")) == (1, 2)
        assert publisher.ping()

    def test_dead_broker_is_told_at_once(self, publisher, server):
        server.end()
        sent, seconds = timed(publisher.send, "job_a")
        assert not sent and seconds < 0.5
        assert not publisher.ping()
        assert publisher.num_waiting("jobs") is None
        assert publisher.live_workers() == set()

    def test_frozen_broker_costs_one_caller_its_time_out(self, publisher, server):
        assert publisher.send("job_a")
        server.process.send_signal(signal.SIGSTOP)
        sent, seconds = timed(publisher.send, "job_b")
        assert not sent and seconds < 3
        sent, seconds = timed(publisher.send, "job_c")
        assert not sent and seconds < 0.1

    def test_broker_that_came_back_takes_the_next_message(self, publisher, server):
        assert publisher.send("job_a")
        server.end()
        broker.socket_of(server.folder).unlink(missing_ok=True)
        server.start()
        assert publisher.send("job_b")
        assert publisher.num_waiting("jobs") == 1

    def test_without_a_broker_nothing_is_sent(self):
        publisher = Publisher(Settings())
        assert not publisher.send("job_a") and not publisher.ping() and publisher.live_workers() == set()

    def test_no_worker_is_no_live_worker(self, publisher):
        found, seconds = timed(publisher.live_workers, 0.3)
        assert found == set() and seconds < 1
