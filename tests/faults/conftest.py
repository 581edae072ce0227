from __future__ import annotations

import sys

import pytest

from tests.faults.service import Service

TINY = "tests.worker.tiny_engine:run"


def pytest_addoption(parser):
    parser.addoption("--times", type=int, default=1, help="how often each process is killed")


def pytest_generate_tests(metafunc):
    if "round_number" in metafunc.fixturenames:
        metafunc.parametrize("round_number", range(metafunc.config.getoption("--times", default=1)))


@pytest.fixture
def make_service(tmp_path):
    """Starts services; ends them, and checks that nothing of them is left."""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks at processes through /proc")
    services = []

    def make(name="data", entry=TINY, **settings):
        service = Service(tmp_path / name, entry, **settings)
        services.append(service)
        service.start()
        return service

    yield make
    for service in services:
        service.stop()
        assert service.processes() == {}
