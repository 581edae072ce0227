"""File formats of data sets, one file each: bytes in, named arrays out, nothing ever unpickled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from worker.compressor.data.stored import StoredArray
from worker.compressor.plugins import Described
from worker.compressor.registry import Registry


class DataFormat(Described, ABC):
    """Reads one kind of file; the file is untrusted, and is checked before memory is taken for what it declares."""

    @abstractmethod
    def open(self, path: Path) -> list[StoredArray]:
        """The arrays of the file, in its order.

        Raises:
            DataError: with the code that says what is wrong.
        """


FORMATS: Registry[DataFormat] = Registry("data format", __name__)


def open_arrays(path: Path, data_format: str) -> list[StoredArray]:
    """The arrays of a data-set file."""
    return FORMATS.get(data_format)().open(path)
