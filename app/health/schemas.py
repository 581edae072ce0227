"""How a process says that it is well."""

from __future__ import annotations

from app.api.schemas import Read


class Alive(Read):
    """The process answers."""

    status: str = "alive"


class Check(Read):
    """One thing that the service stands on."""

    ok: bool
    detail: str


class Readiness(Read):
    """Whether a job that is sent now would run."""

    status: str
    checks: dict[str, Check]


class Version(Read):
    """What runs here."""

    name: str = "featherweight"
    version: str
