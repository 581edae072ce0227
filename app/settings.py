"""Settings, read from the environment (prefix `FEATHERWEIGHT_`) and from `.env`."""

from __future__ import annotations

import functools
import ipaddress
import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1 << 30


class Settings(BaseSettings):
    """What a process of the service may be told; every field has a default that runs on one machine."""

    model_config = SettingsConfigDict(
        env_prefix="FEATHERWEIGHT_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data_dir: Path = Path("data")
    database_url: str | None = None
    broker_url: str | None = None
    storage_url: str | None = None
    auth: Literal["off", "keys"] | None = None
    device: str = "auto"
    concurrency: int = Field(default=1, ge=1, le=64)
    threads: int | None = Field(default=None, ge=1, le=1024)
    max_upload_bytes: int = Field(default=8 * GIB, ge=1)
    log_format: Literal["text", "json"] = "text"

    @model_validator(mode="after")
    def _refuse_an_open_door(self) -> Self:
        if self.auth == "keys":
            raise ValueError(
                "AUTH=keys is not built yet; set FEATHERWEIGHT_AUTH=off and keep the service on a private network"
            )
        if self.auth is None and not self.is_loopback:
            raise ValueError(
                f"HOST={self.host} is not loopback, and this version has no keys: anyone who can reach the port could use it. "
                "Set FEATHERWEIGHT_AUTH=off to say that you want this"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def resolved_database_url(self) -> str:
        """The database: the one that was named, else SQLite below `data_dir`."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'featherweight.db'}"

    @property
    def resolved_storage_url(self) -> str:
        """The blob store: the one that was named, else a folder below `data_dir`."""
        return self.storage_url or str(self.data_dir.resolve() / "storage")

    @property
    def work_dir(self) -> Path:
        """Where attempts keep their scratch folders; emptied as attempts end."""
        return self.data_dir.resolve() / "work"

    @property
    def threads_per_job(self) -> int:
        """Cores over jobs: more would make the OpenMP pools of two jobs starve each other."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.concurrency)


@functools.cache
def load_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
