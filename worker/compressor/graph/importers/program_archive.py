"""A harmless copy of an uploaded exported program: checked JSON and raw numbers, nothing that is run when it is loaded.

`torch.export.load` unpickles sample inputs, constants and objects, evaluates the text of symbolic sizes, puts names from
the file into generated code, and loads compiled libraries. So the file itself is never given to it: `harmless_copy` takes
over what `check_graph` knows to be plain, and leaves the rest behind or refuses it.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.archive import check_pickle_names, index_archive
from worker.compressor.graph.importers.program_graph import ELEMENT_BYTES, clean_program

_MOST_JSON_BYTES = 256 << 20
_MOST_PICKLE_BYTES = 1 << 30
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_SMALL_BYTES = 64
_MODEL = "model"
_OLD = "serialized_exported_program.json"
_RE_SAVE = "Save it again with torch.export.save(torch.export.export(model.eval(), example_inputs), path)."


@dataclass(frozen=True)
class Harmless:
    """What the copy was made of: where it lies, and what was taken out of it on the way.

    `lines` says for each node where in the user's source it comes from; `structures` are the pytree specs (JSON) of
    inputs and outputs as the file has them, of plain containers alone.
    """

    path: Path
    lines: dict[str, str] = field(default_factory=dict)


@contextmanager
def harmless_copy(path: Path) -> Iterator[Harmless]:
    """The copy, beside the file, for as long as it is needed.

    Raises:
        ImportFailed: `malformed_archive`, `archive_bomb`, `unsupported_format`, `unsupported_version`,
            `forbidden_pickle`, `forbidden_operator`, `unknown_operator`, `already_quantised`, `unsupported_feature`,
            `truncated_record` or `malformed_model`.
    """
    copy = path.with_name(f"{path.name}.harmless.pt2")
    try:
        lines = _copy(path, copy)
        yield Harmless(copy, lines)
    finally:
        copy.unlink(missing_ok=True)


def _copy(path: Path, copy: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as made:
            entries = _entries(archive)
            for name in _COPIED:
                if name in entries:
                    made.writestr(f"{_MODEL}/{name}", _read(archive, entries, name, _SMALL_BYTES))
            program, lines = clean_program(_json(archive, entries, f"models/{_MODEL}.json"))
            made.writestr(f"{_MODEL}/models/{_MODEL}.json", json.dumps(program))
            for folder in ("weights", "constants"):
                _copy_tensors(archive, entries, made, folder)
            _check_samples(archive, entries)
            # torch takes an empty record for no samples at all
            made.writestr(f"{_MODEL}/data/sample_inputs/{_MODEL}.pt", b"")
            return lines
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _malformed(f"the archive cannot be read: {str(error)[:200]}") from error


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    if _OLD in archive.namelist():
        raise ImportFailed(
            "the file was saved by an older torch.export (before torch 2.8)",
            code="unsupported_version",
            hint="Load it with that torch, or export the network again, and save it with torch 2.8 or newer.",
        )
    entries = index_archive(archive)
    if any(name.startswith("data/aotinductor/") for name in entries):
        raise ImportFailed(
            "the file holds compiled code (AOTInductor), which is never loaded",
            code="unsupported_format",
            hint=_RE_SAVE,
        )
    if "archive_format" not in entries or _read(archive, entries, "archive_format", _SMALL_BYTES).strip() != b"pt2":
        raise _malformed("the archive is not one of torch.export.save")
    version = _read(archive, entries, "archive_version", _SMALL_BYTES).strip()
    if version != b"0":
        raise ImportFailed(
            f"the archive has the version {version.decode(errors='replace')[:20]}; 0 is taken",
            code="unsupported_version",
            hint="Save it with a torch that this service knows.",
        )
    if "byteorder" in entries and _read(archive, entries, "byteorder", _SMALL_BYTES).strip() != b"little":
        raise ImportFailed("the numbers are stored with the high byte first", code="unsupported_feature")
    return entries


def _read(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    info = entries.get(name)
    if info is None:
        raise _malformed(f"the archive has no '{name}'")
    if info.file_size > limit:
        raise ImportFailed(f"the entry '{name[:100]}' holds {info.file_size} bytes", code="archive_bomb")
    return archive.read(info)


def _json(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str) -> dict[str, Any]:
    try:
        plain = json.loads(_read(archive, entries, name, _MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise _malformed(f"'{name}' is not JSON: {str(error)[:200]}") from error
    if not isinstance(plain, dict):
        raise _malformed(f"'{name}' is not a JSON object")
    return plain


def _copy_tensors(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], made: zipfile.ZipFile, folder: str
) -> None:
    """The tensors of a folder with their table, each record as long as its tensors need."""
    table = f"data/{folder}/{_MODEL}_{folder}_config.json"
    if table not in entries and f"data/{folder}/{_MODEL}.pt" in entries:
        raise _pickled(f"data/{folder}/{_MODEL}.pt")
    config = _json(archive, entries, table).get("config")
    if not isinstance(config, dict):
        raise _malformed(f"'{table}' holds no table")
    rows, copied = {}, set()
    for name, row in config.items():
        rows[name], record = _tensor_row(str(name), row, folder)
        if record not in entries:
            raise _malformed(f"the record '{record[:100]}' of the tensor '{name[:100]}' is missing")
        needed = _needed_bytes(rows[name]["tensor_meta"])
        if entries[record].file_size < needed:
            raise ImportFailed(
                f"the record '{record}' holds {entries[record].file_size} bytes where the tensor '{name}' needs {needed}",
                code="truncated_record",
            )
        if record not in copied:
            copied.add(record)
            target = zipfile.ZipInfo(f"{_MODEL}/{record}")
            with archive.open(entries[record]) as source, made.open(target, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    made.writestr(f"{_MODEL}/{table}", json.dumps({"config": rows}))


def _tensor_row(name: str, row: Any, folder: str) -> tuple[dict[str, Any], str]:
    """A row of the table for a plain tensor on the CPU, and the record that it names."""
    if not isinstance(row, dict) or not isinstance(row.get("path_name"), str):
        raise _malformed(f"the table of the {folder} is broken at '{name[:100]}'")
    record = row["path_name"]
    if row.get("use_pickle") or row.get("tensor_meta") is None or not record.startswith(("weight_", "tensor_")):
        raise _pickled(name)
    meta = row["tensor_meta"]
    if not record.replace("_", "").isalnum() or not isinstance(meta, dict) or meta.get("layout") != 7:
        raise _malformed(f"the tensor '{name[:100]}' is stored in a way that is not known")
    sizes, strides = (_whole(name, meta.get(key)) for key in ("sizes", "strides"))
    offset = _whole(name, [meta.get("storage_offset")])[0]
    if len(sizes) != len(strides) or meta.get("dtype") not in ELEMENT_BYTES:
        raise _malformed(f"the tensor '{name[:100]}' has an impossible shape or type")
    plain = {
        "dtype": meta["dtype"],
        "sizes": [{"as_int": size} for size in sizes],
        "requires_grad": bool(meta.get("requires_grad")),
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": offset},
        "layout": 7,
    }
    kept = {"path_name": record, "is_param": bool(row.get("is_param")), "use_pickle": False, "tensor_meta": plain}
    return kept, f"data/{folder}/{record}"


def _whole(name: str, numbers: Any) -> list[int]:
    found = [n.get("as_int") if isinstance(n, dict) else None for n in numbers] if isinstance(numbers, list) else [None]
    if any(type(n) is not int or not 0 <= n < 1 << 48 for n in found):
        raise _malformed(f"the tensor '{name[:100]}' has an impossible shape")
    return [int(n) for n in found if n is not None]


def _needed_bytes(meta: dict[str, Any]) -> int:
    sizes, strides = ([entry["as_int"] for entry in meta[key]] for key in ("sizes", "strides"))
    if math.prod(sizes) == 0:
        return 0
    last = meta["storage_offset"]["as_int"] + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    return int(last + 1) * ELEMENT_BYTES[meta["dtype"]]


def _check_samples(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> None:
    """The sample inputs are left behind; a file whose samples are no plain tensors is refused all the same."""
    name = f"data/sample_inputs/{_MODEL}.pt"
    if name not in entries or entries[name].file_size == 0:
        return
    blob = _read(archive, entries, name, _MOST_PICKLE_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as inner:
            found = index_archive(inner)
            if "data.pkl" not in found:
                raise _pickled(name)
            check_pickle_names(name, inner.read(found["data.pkl"]), {"torch", "collections"})
    except zipfile.BadZipFile as error:
        raise _pickled(name) from error


def _malformed(detail: str) -> ImportFailed:
    return ImportFailed(detail, code="malformed_archive", hint=_RE_SAVE)


def _pickled(name: str) -> ImportFailed:
    return ImportFailed(
        f"'{name[:100]}' is a pickle of something that is no plain tensor, which is never opened",
        code="forbidden_pickle",
        hint="Export a network whose weights, constants and example inputs are plain tensors.",
    )
