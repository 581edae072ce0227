"""What only a real connection shows: bodies that are never sent, clients that leave, stall, or never read."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from app.db.engine import make_sync_engine, sync_sessions
from app.jobs.events import append_event
from app.tables import ModelRow
from tests.app.server import Server, serving
from tests.app.service import ONNX, PORTS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), MAX_UPLOAD_BYTES=str(8 << 20)) as server:
        yield server


@pytest.fixture(scope="module")
def sessions(server):
    engine = make_sync_engine(f"sqlite:///{server.data_dir / 'featherweight.db'}")
    yield sync_sessions(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def job(server, sessions) -> str:
    model = httpx.put(f"{server.url}/v1/models/net.onnx", content=ONNX).json()["id"]
    with sessions.begin() as session:
        row = session.get_one(ModelRow, model)
        row.status, row.inputs = "ready", PORTS
    return httpx.post(f"{server.url}/v1/jobs", json={"model": model}).json()["id"]


def incoming(server: Server) -> list[Path]:
    return list((server.data_dir / "storage" / "incoming").iterdir())


class TestBeforeTheBody:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ("Content-Length: 10000000000000", 413),
            ("Content-Length: 9000000\r\nContent-Range: bytes 5-9/10", 400),
            ("Content-Length: 1000\r\nRepr-Digest: nonsense", 400),
            ("Content-Length: 1000\r\nContent-Encoding: gzip", 415),
            ("Content-Length: 1000\r\nContent-Type: multipart/form-data; boundary=x", 415),
        ],
    )
    def test_a_client_that_asks_first_never_sends_it(self, server: Server, headers, status):
        answer = server.talk(
            f"PUT /v1/models/a.onnx HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n{headers}\r\n\r\n".encode()
        )
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b"100 Continue" not in answer

    def test_a_sound_one_is_asked_to_go_on(self, server: Server):
        answer = server.talk(
            b"PUT /v1/models/a.onnx HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 100 ")

    def test_curl_is_stopped_early(self, server: Server, tmp_path):
        big = tmp_path / "big.onnx"
        with big.open("wb") as out:
            out.truncate(500 << 20)
        began = time.monotonic()
        command = [
            "curl",
            "-sS",
            "-o",
            str(tmp_path / "out"),
            "-w",
            "%{http_code} %{size_upload}",
            "-T",
            str(big),
            f"{server.url}/v1/models/",
        ]
        code, sent = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split()
        assert code == "413" and int(sent) < 1 << 20 and time.monotonic() - began < 5


class TestFraming:
    def test_two_lengths_are_refused_and_the_connection_closed(self, server: Server):
        request = (
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        request += b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = server.talk(request)
        assert (
            answer.startswith(b"HTTP/1.1 400 ")
            and answer.count(b"HTTP/1.1 ") == 1
            and b"connection: close" in answer.lower()
        )

    def test_garbage_is_a_bad_request(self, server: Server):
        assert server.talk(b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{server.url}/livez").status_code == 200


class TestBrokenUploads:
    @pytest.mark.parametrize(
        "head",
        [
            "PUT /v1/models/a.onnx HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n",
            "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            '--x\r\nContent-Disposition: form-data; name="file"; filename="a.onnx"\r\n\r\n',
        ],
    )
    def test_a_client_that_dies_leaves_nothing(self, server: Server, head):
        before = len(httpx.get(f"{server.url}/v1/models").json()["data"])
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + b"\x08" * 2_000_000)
            deadline = time.monotonic() + 5
            while not incoming(server) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert incoming(server)
        deadline = time.monotonic() + 5
        while incoming(server) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not incoming(server) and len(httpx.get(f"{server.url}/v1/models").json()["data"]) == before

    def test_a_chunked_stream_from_curl_arrives(self, server: Server):
        done = subprocess.run(
            ["curl", "-sS", "--fail-with-body", "-T", "-", f"{server.url}/v1/models/"],
            input=ONNX + b"piped",
            capture_output=True,
        )
        assert done.returncode == 0 and b'"mdl_' in done.stdout, done.stdout + done.stderr


class TestClientsThatNeverRead:
    def test_a_hundred_cost_little_memory(self, server: Server, sessions, job):
        with sessions.begin() as session:
            for i in range(300):
                append_event(session, job, "log", {"level": "info", "message": f"{i} " + "x" * 3000})
        before = server.memory_bytes()
        connections = []
        for _ in range(100):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connections.append(connection)
        time.sleep(3)
        grown = server.memory_bytes() - before
        print(f"100 clients that never read: {grown / 2**20:.0f} MB")
        began = time.monotonic()
        assert httpx.get(f"{server.url}/v1/jobs/{job}").status_code == 200 and time.monotonic() - began < 1
        for connection in connections:
            connection.close()
        assert grown < 40 << 20, grown


class TestCost:
    def test_waiting_clients_cost_little(self, server: Server, job):
        idle = _cpu_share(server, 2)
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                connection.sendall(f"GET /v1/jobs/{job}?wait=30 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(1)
            waiting = _cpu_share(server, 2)
        print(f"idle {idle:.2%}, 20 waiters {waiting:.2%}")
        assert idle < 0.02 and waiting < 0.25  # the clock ticks a hundred times a second: 0.005 of it


def _cpu_share(server: Server, seconds: float) -> float:
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds
