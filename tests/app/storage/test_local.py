"""Storage keeps its promises: by digest, whole or not at all, and never outside its folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from app.errors import InsufficientStorage
from app.storage.backends.local import LocalStorage
from app.storage.registry import open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def put(storage: LocalStorage, data: bytes) -> str:
    writer = storage.begin()
    writer.write(data)
    return writer.commit().sha256


def read(storage: LocalStorage, sha256: str) -> bytes:
    with storage.open(sha256) as stream:
        return stream.read()


def age(storage: LocalStorage, sha256: str, seconds: float) -> None:
    path = storage.local_path(sha256)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


class TestWriter:
    def test_nothing_is_visible_before_the_commit(self, storage):
        writer = storage.begin()
        writer.write(b"abc")
        assert list(storage.digests()) == [] and writer.sha256 == hashlib.sha256(b"abc").hexdigest()
        with writer.reader() as reader:
            assert reader.read() == b"abc"
        blob = writer.commit()
        assert list(storage.digests()) == [blob.sha256] and storage.size(blob.sha256) == 3 == blob.size_bytes

    def test_an_abort_leaves_nothing_and_undoes_no_commit(self, storage):
        writer = storage.begin()
        writer.write(b"abc")
        writer.abort()
        writer.abort()
        assert list(storage._incoming.iterdir()) == []
        writer = storage.begin()
        writer.write(b"abc")
        blob = writer.commit()
        writer.abort()
        assert read(storage, blob.sha256) == b"abc"

    def test_what_is_there_already_is_kept(self, storage):
        sha256 = put(storage, b"abc")
        inode = storage.local_path(sha256).stat().st_ino
        assert put(storage, b"abc") == sha256 and storage.local_path(sha256).stat().st_ino == inode
        assert list(storage._incoming.iterdir()) == []

    def test_a_truncated_blob_is_mended_by_a_second_upload(self, storage):
        sha256 = put(storage, b"abc")
        storage.local_path(sha256).chmod(0o644)
        storage.local_path(sha256).write_bytes(b"a")
        assert put(storage, b"abc") == sha256 and read(storage, sha256) == b"abc"

    def test_a_full_disk_is_told_as_such(self, storage, monkeypatch):
        writer = storage.begin()

        writer._file.close()
        full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0)
        monkeypatch.setattr(writer, "_file", full)
        with pytest.raises(InsufficientStorage):
            writer.write(b"abc")
        writer.abort()
        assert list(storage._incoming.iterdir()) == []

    def test_a_file_is_copied_in(self, storage, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 3_000_000)
        blob = storage.put_file(tmp_path / "file")
        assert read(storage, blob.sha256) == b"x" * 3_000_000 and (tmp_path / "file").exists()


class TestNames:
    @pytest.mark.parametrize(
        "name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "/" + "a" * 63, "a" * 63 + "\n", "deleted:mdl_x"]
    )
    def test_nothing_but_a_digest_names_a_path(self, storage, name):
        for function in (storage.open, storage.local_path, storage.size, storage.delete):
            with pytest.raises(FileNotFoundError):
                function(name)

    def test_a_link_is_not_followed(self, storage, tmp_path):
        sha256 = put(storage, b"abc")
        storage.delete(sha256)
        (tmp_path / "secret").write_bytes(b"secret")
        storage.local_path(sha256).symlink_to(tmp_path / "secret")
        with pytest.raises(OSError):
            storage.open(sha256)


class TestIntegrity:
    def test_a_change_on_disk_is_found(self, storage):
        sha256 = put(storage, b"abc")
        assert storage.is_intact(sha256) and storage.is_intact(sha256)
        storage.local_path(sha256).chmod(0o644)
        storage.local_path(sha256).write_bytes(b"abd")
        assert not storage.is_intact(sha256)


class TestDelete:
    def test_age_protects(self, storage):
        sha256 = put(storage, b"abc")
        assert not storage.delete(sha256, older_than_seconds=60)
        age(storage, sha256, 120)
        assert list(storage.digests(older_than_seconds=60)) == [sha256]
        assert storage.touch(sha256) and not storage.delete(sha256, older_than_seconds=60)
        age(storage, sha256, 120)
        assert (
            storage.delete(sha256, older_than_seconds=60) and not storage.delete(sha256) and not storage.touch(sha256)
        )

    def test_a_second_upload_makes_it_young_again(self, storage):
        sha256 = put(storage, b"abc")
        age(storage, sha256, 120)
        put(storage, b"abc")
        assert not storage.delete(sha256, older_than_seconds=60)

    def test_what_a_dead_writer_left_is_swept_and_a_live_one_is_safe(self, storage):
        writer = storage.begin()
        assert storage.sweep(older_than_seconds=0) == 0
        writer._file.close()  # what the kernel does for a process that is killed
        assert storage.sweep(older_than_seconds=60) == 0 and storage.sweep(older_than_seconds=0) == 1
        writer.abort()


class TestRegistry:
    def test_a_folder_and_a_file_url_are_the_same(self, tmp_path):
        sha256 = put(LocalStorage(tmp_path / "a b"), b"abc")
        assert (
            open_storage(str(tmp_path / "a b")).size(sha256)
            == open_storage((tmp_path / "a b").as_uri()).size(sha256)
            == 3
        )

    def test_an_unknown_scheme_names_the_known_ones(self):
        with pytest.raises(ValueError, match="file://"):
            open_storage("ftp://x/y")


def test_a_check_leaves_nothing_behind(storage):
    storage.check()
    assert list(storage._incoming.iterdir()) == []
