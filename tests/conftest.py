"""What all tests share: where a service must be there, a test that skips for want of it is a failure."""

from __future__ import annotations

import os
import re

import pytest

# Set before torch is imported anywhere: two torch processes whose idle threads spin starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_SERVICES = re.compile(r"redis|postgres", re.IGNORECASE)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("FEATHERWEIGHT_TEST_REQUIRE_SERVICES"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [r for r in (reporter.stats.get("skipped", []) if reporter else []) if _SERVICES.search(str(r.longrepr))]
    if skipped and exitstatus == 0:
        session.exitstatus = 1
        reporter.write_line(f"{len(skipped)} tests skipped for want of Redis or Postgres, which must be here", red=True)
