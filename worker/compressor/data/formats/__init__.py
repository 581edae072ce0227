"""File formats of data sets, one file each: bytes in, named arrays out, nothing ever unpickled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from worker.compressor.data.stored import StoredArray
from worker.compressor.registry import Registry


class NoOptions(BaseModel):
    """Takes no options."""

    model_config = ConfigDict(extra="forbid")


class DataFormat(ABC):
    """Reads one kind of file; the file is untrusted, and is checked before memory is taken for what it declares."""

    name: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[list[str]] = []
    Options: ClassVar[type[BaseModel]] = NoOptions

    @abstractmethod
    def open(self, path: Path) -> list[StoredArray]:
        """The arrays of the file, in its order.

        Raises:
            DataError: with the code that says what is wrong (BAD_INPUTS, data sets).
        """


FORMATS: Registry[DataFormat] = Registry("data format", __name__)


def open_arrays(path: Path, data_format: str) -> list[StoredArray]:
    """The arrays of a data-set file."""
    return FORMATS.get(data_format)().open(path)
