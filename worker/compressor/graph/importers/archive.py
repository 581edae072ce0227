"""Is this TorchScript archive safe to hand to the loader? Checked from the zip index, the pickles and the code, unloaded.

`torch.jit.load` runs `__setstate__` from the file, crashes on deep nesting, and gives a weight whose record is too short
whatever lies behind it in memory. This is no boundary (the sandboxed process is), but it names what is wrong.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from worker.compressor.errors import ImportFailed

_MOST_ENTRIES = 100_000
_MOST_CODE_BYTES = 64 << 20
_MOST_PICKLE_BYTES = 256 << 20
_MOST_RATIO = 200  # of deflated text; weights are stored as they are
_SMALL_BYTES = 1 << 20
_MOST_NESTED = 200
_ELEMENT_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}  # fmt: skip
_FORBIDDEN = re.compile(r"\b(?:torch|ops\.aten)\.(save|load|from_file|_from_file|_save_to_file)\s*\(")
_NAMESPACE = re.compile(r"(?<![\w.])ops\.(\w+)\.(\w+)")  # not a class of a module called `ops`
_CUSTOM_CLASS = re.compile(r"__torch__\.torch\.classes\.([\w.]+)")
_KNOWN_NAMESPACES = {"aten", "prim", "prims"}
_RE_SAVE = "Save it again with torch.jit.save(torch.jit.script(model.eval()), path)."


def check_archive(path: Path) -> None:
    """Refuse what is no TorchScript archive, or would harm the process that loads it.

    Raises:
        ImportFailed: `malformed_archive`, `archive_bomb`, `pickle_not_accepted`, `architecture_missing`,
            `unsupported_format`, `forbidden_pickle`, `forbidden_operator`, `unknown_operator`, `already_quantised`,
            `truncated_record` or `malformed_model`.
    """
    _check_magic(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = index_archive(archive)
            _check_kind(archive, entries)
            for name, info in entries.items():
                if name.startswith("code/") and name.endswith(".py"):
                    _check_code(name, archive.read(info).decode("utf-8", "replace"))
            for pickled in ("data.pkl", "constants.pkl"):
                if pickled in entries:
                    _check_pickle(pickled, archive.read(entries[pickled]), entries)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _malformed(f"the archive cannot be read: {str(error)[:200]}") from error


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return
    if head[:1] == b"\x80":
        raise _pickle_not_accepted()
    if head[8:9] == b"{":
        raise _architecture_missing()
    raise _malformed("the file is not a zip archive, which TorchScript files are")


def index_archive(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries by their path below the archive's one folder; refuses impossible names, doubles and bombs."""
    infos = archive.infolist()
    if len(infos) > _MOST_ENTRIES:
        raise _malformed(f"the archive has {len(infos)} entries")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if ".." in parts or info.filename.startswith("/") or "\\" in info.filename or len(parts) < 2:
            raise _malformed(f"the archive has an entry of the impossible name '{info.filename[:100]}'")
        name = "/".join(parts[1:])
        if name in found:
            raise _malformed(f"the archive has two entries '{name[:100]}'")
        if info.file_size > _SMALL_BYTES and info.file_size > _MOST_RATIO * max(info.compress_size, 1):
            raise ImportFailed(f"the entry '{name[:100]}' unpacks to {info.file_size} bytes", code="archive_bomb")
        limit = _MOST_CODE_BYTES if name.startswith("code/") else _MOST_PICKLE_BYTES if name.endswith(".pkl") else None
        if limit is not None and info.file_size > limit:
            raise ImportFailed(f"the entry '{name[:100]}' holds {info.file_size} bytes", code="archive_bomb")
        found[name] = info
    return found


def _check_kind(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> None:
    if any("exported_program" in name or name in ("archive_format", "models/model.json") for name in entries):
        raise ImportFailed(
            "the file is an exported program (.pt2), not TorchScript",
            code="unsupported_format",
            hint="Upload it as torch.export.save wrote it.",
        )
    if "data.pkl" not in entries:
        raise _malformed("the archive holds no model")
    if not any(name.startswith("code/") for name in entries):
        reader = _read("data.pkl", archive.read(entries["data.pkl"]))
        tensors_only = all(module.split(".")[0] in ("torch", "collections") for module, _ in reader.wanted)
        raise _architecture_missing() if tensors_only and not _has_modules(reader) else _pickle_not_accepted()


def _has_modules(reader: _Reader) -> bool:
    return any(module.startswith("torch.nn.modules") for module, _ in reader.wanted)


def _check_code(name: str, text: str) -> None:
    depth = run = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        run = run + 1 if character in "-~+" else 0 if not character.isspace() else run
        if depth > _MOST_NESTED or run > _MOST_NESTED:
            raise ImportFailed(f"the code in '{name}' is nested too deep to be read", code="malformed_model")
    if match := _FORBIDDEN.search(text):
        raise ImportFailed(
            f"the code in '{name}' calls torch.{match[1]}, which touches files",
            code="forbidden_operator",
            hint="Save the network without it.",
        )
    if match := _CUSTOM_CLASS.search(text):
        quantised = match[1].startswith("quantized")
        raise _quantised(name) if quantised else _unknown(f"the class torch.classes.{match[1]}", name)
    for match in _NAMESPACE.finditer(text):
        if match[1] in ("quantized", "quantized_decomposed"):
            raise _quantised(name)
        if match[1] not in _KNOWN_NAMESPACES:
            raise _unknown(f"the operator {match[1]}::{match[2]}", name)


class _Object(dict[Any, Any]):
    """Stands for whatever a pickle names; takes any items and any state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget it."""

    def append(self, item: Any) -> None:
        """Forget it."""

    def extend(self, items: Any) -> None:
        """Forget them."""


class _Reader(pickle._Unpickler):
    """Reads a pickle's structure without importing or calling anything that it names.

    TorchScript writes the member of an enumeration as a call whose argument is no tuple, which the reader in C refuses.
    """

    stack: list[Any]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.wanted: list[tuple[str, str]] = []
        self.tensors: list[tuple[Any, ...]] = []

    def find_class(self, module: str, name: str) -> Any:
        self.wanted.append((module, name))
        if name in _ELEMENT_BYTES:
            return name
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._rebuild
        if name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"):
            return list
        return _Object

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        made = self.stack[-1](*arguments) if isinstance(arguments, tuple) else self.stack[-1](arguments)
        self.stack[-1] = made

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.REDUCE[0]: _reduce}

    def _rebuild(self, *args: Any) -> _Object:
        self.tensors.append(args)
        return _Object()


def check_pickle_names(name: str, data: bytes, allowed: frozenset[str] | set[str]) -> _Reader:
    """Read a pickle without importing anything; raises `ImportFailed` where it names another package than those."""
    reader, failure = _try_to_read(name, data)
    for module, _ in reader.wanted:
        if module.split(".")[0] not in allowed:
            raise ImportFailed(f"'{name}' names '{module[:100]}', which no network needs", code="forbidden_pickle")
    if failure is not None:
        raise _unreadable(name, failure) from failure
    return reader


def _check_pickle(name: str, data: bytes, entries: dict[str, zipfile.ZipInfo]) -> None:
    reader = check_pickle_names(name, data, {"__torch__", "torch", "collections"})
    folder = "constants" if name == "constants.pkl" else "data"
    for tensor in reader.tensors:
        _check_record(folder, tensor, entries)


def _read(name: str, data: bytes) -> _Reader:
    reader, failure = _try_to_read(name, data)
    if failure is not None:
        raise _unreadable(name, failure) from failure
    return reader


def _try_to_read(name: str, data: bytes) -> tuple[_Reader, Exception | None]:
    _check_nesting(name, data)
    reader = _Reader(data)
    try:
        reader.load()
    except Exception as error:  # a crafted pickle can make the reader fail in any way
        return reader, error
    return reader, None


def _unreadable(name: str, failure: Exception) -> ImportFailed:
    return _malformed(f"'{name}' cannot be read: {str(failure)[:200]}")


def _check_nesting(name: str, data: bytes) -> None:
    # a list within a list within a list…: the loader's own reader goes down recursively
    if re.search(rb"(?:[\]\(\)\}](?:q.|r....|\x94)?){%d}" % (10 * _MOST_NESTED), data, re.DOTALL):
        raise ImportFailed(f"'{name}' is nested too deep to be read", code="malformed_model")


def _check_record(folder: str, tensor: tuple[Any, ...], entries: dict[str, zipfile.ZipInfo]) -> None:
    """The record in the archive must be as long as the tensor needs, or its weights would be foreign memory."""
    (_, kind, key, _, num_elements), offset, sizes, strides = tensor[:4]
    record = entries.get(f"{folder}/{key}") or entries.get(f"data/{key}") or entries.get(f"constants/{key}")
    if record is None:
        raise _malformed(f"the record {key} of a tensor is missing")
    sizes, strides = list(sizes), list(strides)
    if offset < 0 or any(size < 0 for size in sizes) or any(stride < 0 for stride in strides):
        raise _malformed(f"the record {key} has an impossible shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    needed = (last + 1) * _ELEMENT_BYTES.get(kind, 1) if math.prod(sizes) else 0
    if record.file_size < max(needed, num_elements * _ELEMENT_BYTES.get(kind, 1)):
        raise ImportFailed(
            f"the record {key} holds {record.file_size} bytes where its tensor needs {needed}", code="truncated_record"
        )


def _malformed(detail: str) -> ImportFailed:
    return ImportFailed(detail, code="malformed_archive", hint=_RE_SAVE)


def _pickle_not_accepted() -> ImportFailed:
    return ImportFailed(
        "the file is a pickle of Python objects, which is never opened", code="pickle_not_accepted", hint=_RE_SAVE
    )


def _architecture_missing() -> ImportFailed:
    return ImportFailed("the file holds weights without a network", code="architecture_missing", hint=_RE_SAVE)


def _quantised(name: str) -> ImportFailed:
    return ImportFailed(
        f"the code in '{name}' works on quantised numbers",
        code="already_quantised",
        hint="Upload the network as it was before quantisation.",
    )


def _unknown(what: str, name: str) -> ImportFailed:
    return ImportFailed(
        f"the code in '{name}' uses {what}, which is not part of torch",
        code="unknown_operator",
        hint="Export with torch's own operators, or as ONNX.",
    )
