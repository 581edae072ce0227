"""Storage in a folder: `blobs/ab/abcd…` for what is stored, `incoming/` for what is on its way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from app.errors import InsufficientStorage
from app.storage.interface import Blob, BlobWriter

_DIGEST = re.compile(r"[0-9a-f]{64}")
_COPY_BYTES = 1 << 20


@contextlib.contextmanager
def _full_disk_is_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage(
                "the disk behind the storage is full", hint="free some space, then send it again"
            ) from error
        raise


class LocalStorage:
    """A folder on one machine, safe for many processes.

    A commit is write, fsync, rename, fsync of the folder. Commit and delete take one lock, so that a blob which is being
    collected as garbage and written again at the same moment is there in the end.
    """

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        self._lock_path = root / "lock"
        for folder in (self._blobs, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        self._intact: dict[str, tuple[int, int, int]] = {}

    def begin(self) -> BlobWriter:
        """A writer into a temporary file of the same file system."""
        with _full_disk_is_told():
            return _Writer(self, self._incoming)

    def put_file(self, path: Path) -> Blob:
        """Copy a file in through a writer."""
        writer = self.begin()
        try:
            with path.open("rb") as source:
                while chunk := source.read(_COPY_BYTES):
                    writer.write(chunk)
            return writer.commit()
        finally:
            writer.abort()

    def open(self, sha256: str) -> BufferedReader:
        """The file, opened without following links."""
        return os.fdopen(os.open(self.local_path(sha256), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def local_path(self, sha256: str) -> Path:
        """The file's path; `FileNotFoundError` for anything that is not a digest, so that no other path can be named."""
        if not _DIGEST.fullmatch(sha256):
            raise FileNotFoundError(errno.ENOENT, "no such blob")
        return self._blobs / sha256[:2] / sha256

    def size(self, sha256: str) -> int:
        """The file's size."""
        return self.local_path(sha256).stat().st_size

    def is_intact(self, sha256: str) -> bool:
        """Hashes the file once per process and change (inode, size, time of change)."""
        with self.open(sha256) as stream:
            stat = os.fstat(stream.fileno())
            known = (stat.st_ino, stat.st_size, stat.st_ctime_ns)
            if self._intact.get(sha256) == known:
                return True
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                return False
        self._intact[sha256] = known
        return True

    def touch(self, sha256: str) -> bool:
        """Renews the time of change under the lock."""
        with self._locked():
            try:
                os.utime(self.local_path(sha256))
            except FileNotFoundError:
                return False
            return True

    def delete(self, sha256: str, *, older_than_seconds: float = 0) -> bool:
        """Unlinks under the lock, after looking at the age once more."""
        path = self.local_path(sha256)
        with self._locked(), contextlib.suppress(FileNotFoundError):
            if _age(path) >= older_than_seconds:
                path.unlink()
                self._intact.pop(sha256, None)
                return True
        return False

    def digests(self, *, older_than_seconds: float = 0) -> Iterator[str]:
        """Walks the folders."""
        for folder in self._blobs.iterdir():
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if _DIGEST.fullmatch(path.name) and _age(path) >= older_than_seconds:
                        yield path.name

    def sweep(self, *, older_than_seconds: float) -> int:
        """Removes temporary files whose writer is dead: a live one holds a lock, which the kernel takes back."""
        count = 0
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                if _age(path) >= older_than_seconds:
                    with path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()
                    count += 1
        return count

    def check(self) -> None:
        """Writes one byte and removes it."""
        with _full_disk_is_told(), tempfile.TemporaryFile(dir=self._incoming) as probe:
            probe.write(b"x")
            probe.flush()

    def keep(self, path: Path, blob: Blob) -> None:
        """Give a written and synchronised temporary file its place; used by the writer."""
        target = self.local_path(blob.sha256)
        target.parent.mkdir(exist_ok=True)
        with self._locked():
            if target.exists() and target.stat().st_size == blob.size_bytes:
                os.utime(target)
                path.unlink()
            else:
                path.rename(target)
                _sync_folder(target.parent)
        _sync_folder(self._blobs)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock_path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class _Writer:
    """One temporary file; see `BlobWriter`."""

    def __init__(self, storage: LocalStorage, folder: Path) -> None:
        self._storage = storage
        descriptor, name = tempfile.mkstemp(dir=folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._path = Path(name)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self._is_open = True
        self._in_use = threading.Lock()  # a cancelled request aborts while a thread may still write

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        with self._in_use, _full_disk_is_told():
            self._hash.update(view)
            self.size_bytes += len(view)
            while view:
                view = view[self._file.write(view) :]

    def reader(self) -> BinaryIO:
        return self._path.open("rb")

    def commit(self) -> Blob:
        with self._in_use, _full_disk_is_told():
            blob = Blob(self.sha256, self.size_bytes)
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._file.close()
            self._storage.keep(self._path, blob)
            self._is_open = False
        return blob

    def abort(self) -> None:
        with self._in_use:
            if self._is_open:
                self._is_open = False
                self._file.close()
                self._path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
