"""Probes."""

from __future__ import annotations

from tests.app.service import Service, problem


class TestHealth:
    def test_a_process_is_alive_whatever_is_missing(self, service: Service):
        assert (
            service.get("/livez").json() == {"status": "alive"} and service.request("HEAD", "/livez").status_code == 200
        )

    def test_readiness_names_what_is_missing(self, service: Service):
        answer = service.get("/readyz")
        checks = problem(answer, 503, "not_ready")["checks"]
        assert {name: check["ok"] for name, check in checks.items()} == {
            "database": True,
            "storage": True,
            "broker": False,
            "worker": False,
        }
        assert answer.headers["retry-after"]

    def test_the_version_is_told(self, service: Service):
        assert service.get("/version").json()["version"]

    def test_the_catalog_is_the_specs(self, service: Service):
        catalog = service.get("/v1/catalog").json()
        assert {"name", "help", "needs", "options"} <= catalog["criteria"][0].keys()
