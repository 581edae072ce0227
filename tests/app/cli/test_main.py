"""The command line's refusals: one line each, no traceback. What runs is tested in tests/faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.cli import broker
from app.cli.errors import StartError
from app.cli.listening import listen, url_of


def featherweight(*words, cwd, **settings):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEATHERWEIGHT_")}
    environment |= {f"FEATHERWEIGHT_{k}": v for k, v in settings.items()}
    command = [sys.executable, "-m", "app.cli.main", *words]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


class TestMain:
    @pytest.mark.parametrize(
        ("words", "settings", "told"),
        [
            (["worker"], {}, "FEATHERWEIGHT_BROKER_URL is not set"),
            (["api"], {}, "FEATHERWEIGHT_BROKER_URL is not set"),
            (["serve", "--host", "0.0.0.0"], {}, "FEATHERWEIGHT_AUTH=off"),
            (["serve"], {"PORT": "seven"}, "FEATHERWEIGHT_PORT"),
            (["serve", "--data-dir", "/proc/nowhere"], {}, "cannot be used"),
            (["migrate"], {"DATABASE_URL": "mysql://nowhere/x"}, "SQLite or PostgreSQL"),
            (["migrate"], {"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/x"}, "the database cannot be used"),
        ],
    )
    def test_what_cannot_start_says_why(self, tmp_path, words, settings, told):
        done = featherweight(*words, cwd=tmp_path, **settings)
        assert done.returncode == 1
        assert told in done.stderr and "Traceback" not in done.stderr

    def test_flags_are_documented(self, tmp_path):
        text = featherweight("serve", "--help", cwd=tmp_path).stdout
        assert all(flag in text for flag in ("--host", "--port", "--data-dir")) and "--fd" not in text

    def test_migrate_makes_the_data_folder(self, tmp_path):
        assert featherweight("migrate", "--data-dir", "made/here", cwd=tmp_path).returncode == 0
        assert (tmp_path / "made/here/featherweight.db").is_file()


class TestListen:
    def test_port_zero_takes_a_free_one(self):
        with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as two:
            assert one.getsockname()[1] != two.getsockname()[1]
            assert url_of(one) == f"http://127.0.0.1:{one.getsockname()[1]}"

    def test_busy_port_is_refused(self):
        with listen("127.0.0.1", 0) as taken, pytest.raises(StartError, match="taken by another program"):
            listen("127.0.0.1", taken.getsockname()[1])

    def test_foreign_address_is_refused(self):
        with pytest.raises(StartError, match=r"cannot listen on 203\.0\.113\.1"):
            listen("203.0.113.1", 0)


class TestBroker:
    def test_without_a_server_the_setting_is_named(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(StartError, match="FEATHERWEIGHT_BROKER_URL"):
            broker.find_server()

    def test_folder_is_private_and_short(self):
        folder = broker.make_folder()
        try:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert len(bytes(broker.socket_of(folder))) <= 103
        finally:
            folder.rmdir()
