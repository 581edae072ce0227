"""Which backend serves a storage URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.storage.backends.local import LocalStorage
from app.storage.interface import Storage


def _open_folder(url: str) -> Storage:
    parts = urlsplit(url)
    return LocalStorage(Path(unquote(parts.path) if parts.scheme else url).absolute())


BACKENDS: dict[str, Callable[[str], Storage]] = {"": _open_folder, "file": _open_folder}


def open_storage(url: str) -> Storage:
    """The storage at a URL; a plain path is a folder. Raises `ValueError` that names the schemes there are."""
    scheme = urlsplit(url).scheme
    if scheme not in BACKENDS:
        raise ValueError(f"no storage for {scheme}://; known: a folder, {', '.join(f'{s}://' for s in BACKENDS if s)}")
    return BACKENDS[scheme](url)
