"""One running service for all tests over HTTP that do not need one of their own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from examples import demo


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with demo.service(tmp_path_factory.mktemp("service") / "data") as found:
        yield found
