"""A head that never comes ends its connection; everybody else is served."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from app.api.protocol import BoundedHeadProtocol
from app.main import create_app
from app.settings import Settings


class Impatient(BoundedHeadProtocol):
    head_seconds = 0.5


@pytest.fixture
def port(settings: Settings) -> Iterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=0, http=Impatient, log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def seconds_until_closed(port: int, *, first: bytes, drip: bytes) -> float:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        began = time.monotonic()
        connection.sendall(first)
        connection.settimeout(0.1)
        while time.monotonic() - began < 5:
            with contextlib.suppress(TimeoutError):
                try:
                    is_closed = not connection.recv(4096)
                except ConnectionResetError:
                    is_closed = True  # what was dripped after the end is answered with a reset
                if is_closed:
                    return time.monotonic() - began
            try:
                connection.sendall(drip)
            except OSError:
                return time.monotonic() - began
        return 5


class TestBoundedHeadProtocol:
    def test_a_slow_head_is_ended(self, port: int):
        assert seconds_until_closed(port, first=b"GET /livez HTTP/1.1\r\n", drip=b"X: y\r\n") < 2

    def test_silence_is_ended(self, port: int):
        assert seconds_until_closed(port, first=b"", drip=b"") < 2

    def test_a_second_slow_head_on_a_kept_connection_is_ended(self, port: int):
        assert seconds_until_closed(port, first=b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /li", drip=b"v") < 2

    def test_a_slow_answer_is_not(self, port: int):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            assert client.get("/livez").status_code == 200
            time.sleep(1)
            assert client.get("/livez").status_code == 200
            assert client.get("/readyz").status_code == 503
