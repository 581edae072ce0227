"""Big files pass through without staying: 256 MB in CI, FEATHERWEIGHT_TEST_UPLOAD_MB=1024 for the full size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.app.server import Server, serving

SIZE_MB = int(os.environ.get("FEATHERWEIGHT_TEST_UPLOAD_MB", "256"))
ALLOWED_GROWTH = 50 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("memory"), MAX_UPLOAD_BYTES=str(2 << 30)) as server:
        yield server


@pytest.fixture(scope="module")
def big_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("big") / "big.onnx"
    block = os.urandom(1 << 20)
    with path.open("wb") as out:
        out.write(b"\x08\x08")
        for i in range(SIZE_MB):
            out.write(i.to_bytes(4, "little") + block[4:])
    return path


def growth(server: Server, action: Callable[[], None]) -> tuple[int, float]:
    """The most that resident memory grew during `action`, in bytes, and how many seconds it took."""
    before, peak, done = server.memory_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, server.memory_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return peak - before, time.monotonic() - began


def curl(*arguments: str) -> None:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
class TestBigFiles:
    def test_a_form_upload_streams_to_storage(self, server, big_file):
        grown, seconds = growth(server, lambda: curl("-F", f"file=@{big_file}", f"{server.url}/v1/models"))
        print(f"form: {SIZE_MB} MB, growth {grown / 2**20:.1f} MB, {SIZE_MB / seconds:.0f} MB/s")
        assert grown < ALLOWED_GROWTH

    def test_a_raw_upload_streams_to_storage(self, server, big_file):
        grown, seconds = growth(server, lambda: curl("-T", str(big_file), f"{server.url}/v1/models/"))
        print(f"raw: {SIZE_MB} MB, growth {grown / 2**20:.1f} MB, {SIZE_MB / seconds:.0f} MB/s")
        assert grown < ALLOWED_GROWTH

    def test_a_download_streams_from_storage(self, server, big_file, tmp_path):
        import httpx

        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]
        out = tmp_path / "out"
        grown, seconds = growth(server, lambda: curl("-o", str(out), f"{server.url}/v1/models/{model['id']}/content"))
        print(f"download: {SIZE_MB} MB, growth {grown / 2**20:.1f} MB, {SIZE_MB / seconds:.0f} MB/s")
        assert grown < ALLOWED_GROWTH
        with out.open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == model["sha256"]
