"""The compose file: what only a container engine could run is at least well-formed and closed to the outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


class TestCompose:
    def test_the_port_is_published_on_loopback_only(self, compose: dict[str, Any]) -> None:
        published = [port for service in compose["services"].values() for port in service.get("ports", [])]
        assert published
        assert all(port.startswith("127.0.0.1:") for port in published)

    def test_api_and_workers_share_storage_database_and_broker(self, compose: dict[str, Any]) -> None:
        users = [compose["services"][name] for name in ("api", "worker", "worker-gpu")]
        assert all("storage:/data" in user["volumes"] for user in users)
        for key in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL"):
            assert len({user["environment"][f"FEATHERWEIGHT_{key}"] for user in users}) == 1

    def test_gpu_workers_are_asked_for(self, compose: dict[str, Any]) -> None:
        assert compose["services"]["worker-gpu"]["profiles"] == ["gpu"]

    @pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]])
    def test_docker_compose_takes_it(self, profile: list[str]) -> None:
        if not (command := shutil.which("docker-compose")):
            pytest.skip("docker-compose is not installed")
        subprocess.run([command, *profile, "config", "-q"], check=True, cwd=ROOT, env=os.environ)

    def test_the_images_are_built_from_what_exists(self, compose: dict[str, Any]) -> None:
        text = (ROOT / "Dockerfile").read_text()
        targets = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
        assert all(f" AS {target}\n" in text for target in targets)
        copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
        assert all((ROOT / path).exists() for paths in copied for path in paths)


class TestSettings:
    def test_a_public_host_is_refused_unless_said_aloud(self) -> None:
        command = [str(ROOT / ".venv/bin/featherweight"), "api", "--host", "0.0.0.0", "--port", "0"]
        if not Path(command[0]).exists():
            command[0] = shutil.which("featherweight") or command[0]
        env = {k: v for k, v in os.environ.items() if not k.startswith("FEATHERWEIGHT_")}
        out = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        assert out.returncode != 0
        assert "FEATHERWEIGHT_AUTH=off" in out.stderr
        assert "Traceback" not in out.stderr
