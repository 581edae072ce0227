"""A `.zip` of one ONNX file and its data files, unpacked without trusting a word of it.

Only the ONNX file and the data files that it names are unpacked, entry by entry under names that were checked, and never
more bytes than the index declares.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.stored import StoredModel
from worker.compressor.graph.importers.validation import external_files, open_file

_MOST_ENTRIES = 10_000
#: Constant weights deflate a thousandfold, so a ratio alone proves nothing below this size.
_LEAST_BOMB_BYTES = 1 << 30
_MOST_RATIO = 200
_BLOCK_BYTES = 1 << 20
_HINT = "Send a .zip of the .onnx file and the data files that it names, as they lie beside each other."


def is_bundle(path: Path) -> bool:
    """Whether the file is a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def open_bundle(path: Path, folder: Path) -> StoredModel:
    """The parsed graph of the one ONNX file in a zip archive; it and its data files are unpacked below `folder`.

    Raises:
        ImportFailed: `malformed_archive`, `archive_bomb`, `external_data_path`, `external_data_missing`, or what is wrong
            with the ONNX file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _index(archive, path.stat().st_size)
            name = _network(entries)
            root = PurePosixPath(name).parent
            stored = open_file(_unpack(archive, entries[name], folder / PurePosixPath(name).name))
            for location in sorted(external_files(stored)):
                entry = entries.get(str(root / location))
                if entry is not None:  # a missing one is told when its tensor is checked
                    _unpack(archive, entry, folder / location)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise _malformed(f"the archive cannot be read: {str(error)[:200]}") from error
    return stored


def _index(archive: zipfile.ZipFile, size_bytes: int) -> Mapping[str, zipfile.ZipInfo]:
    """The files of an archive by name, all of them harmless to unpack."""
    infos = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    if len(infos) > _MOST_ENTRIES:
        raise _malformed(f"the archive has {len(infos)} entries")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\\" in name or not name.isprintable() or len(name) > 1024:
            raise _malformed(f"the archive has an entry of the impossible name {name[:100]!r}")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ImportFailed(f"the entry '{name[:100]}' is a link", code="external_data_path", hint=_HINT)
        if info.flag_bits & 1:
            raise _malformed(f"the entry '{name[:100]}' is encrypted")
        if str(PurePosixPath(name)) in found:
            raise _malformed(f"the archive has two entries '{name[:100]}'")
        found[str(PurePosixPath(name))] = info
    total = sum(info.file_size for info in infos)
    if total > _LEAST_BOMB_BYTES and total > _MOST_RATIO * size_bytes:
        raise ImportFailed(f"the archive unpacks to {total} bytes", code="archive_bomb", hint=_HINT)
    return found


def _network(entries: Mapping[str, zipfile.ZipInfo]) -> str:
    names = [name for name in entries if name.lower().endswith(".onnx")]
    if len(names) != 1:
        told = ", ".join(name[:100] for name in names[:5]) or "none"
        raise _malformed(f"the archive must hold one .onnx file, and holds {len(names)}: {told}")
    return names[0]


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> Path:
    """Write one entry; a file that is longer than its entry says is refused at that byte."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _BLOCK_BYTES)
    if target.stat().st_size != info.file_size:
        raise _malformed(f"the entry '{info.filename[:100]}' is not as long as it says")
    return target


def _malformed(detail: str) -> ImportFailed:
    return ImportFailed(detail, code="malformed_archive", hint=_HINT)
