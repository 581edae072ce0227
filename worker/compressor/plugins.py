"""What every plug-in of the engine carries for the catalog: a name, a line of help, what it needs, and its options."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class NoOptions(BaseModel):
    """Takes no options."""

    model_config = ConfigDict(extra="forbid")


class Described:
    """Base of plug-ins: `needs` lists what a job must bring (data, labels, batchnorm)."""

    name: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[list[str]] = []
    Options: ClassVar[type[BaseModel]] = NoOptions
