"""What a worker asks of the engine: `request.json` in the attempt's folder, read once, never written here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.spec.schema import Spec

Kind = Literal["compress", "inspect_model", "inspect_dataset"]


@dataclass(frozen=True)
class Source:
    """The uploaded network; `file` is there for inspections only: a compressing child never sees those bytes."""

    file: Path | None
    format: str
    sha256: str
    size_bytes: int
    name: str | None


@dataclass(frozen=True)
class GraphFiles:
    """The normalised graph of an inspection and the facts beside it."""

    file: Path
    facts: Path


@dataclass(frozen=True)
class DatasetFile:
    """The data set's bytes."""

    file: Path
    format: str
    sha256: str


@dataclass(frozen=True)
class Request:
    """One attempt: everything that the engine is told. Paths are absolute."""

    folder: Path
    kind: Kind
    id: str
    attempt: int
    threads: int
    device: str
    source: Source | None
    signature: list[dict[str, Any]] | None
    graph: GraphFiles | None
    dataset: DatasetFile | None
    spec: Spec | None
    checkpoints: Path | None
    baseline_cache: Path | None

    @property
    def output(self) -> Path:
        """Where artifacts go."""
        return self.folder / "output"


def read_request(folder: Path) -> Request:
    """The request of an attempt's folder; a malformed one is a bug of ours and raises KeyError or ValueError."""
    plain = json.loads((folder / "request.json").read_text())
    source, graph, data = plain.get("source"), plain.get("graph"), plain.get("dataset")
    return Request(
        folder=folder,
        kind=plain["kind"],
        id=plain["id"],
        attempt=plain["attempt"],
        threads=plain.get("threads") or 1,
        device=plain.get("device") or "auto",
        source=_source(folder, source) if source else None,
        signature=plain.get("signature"),
        graph=GraphFiles(folder / graph["file"], folder / graph["facts"]) if graph else None,
        dataset=DatasetFile(folder / data["file"], data["format"], data["sha256"]) if data else None,
        spec=Spec.model_validate(plain["spec"]) if plain.get("spec") else None,
        checkpoints=_path(folder, plain.get("checkpoints")),
        baseline_cache=_path(folder, plain.get("baseline_cache")),
    )


def _source(folder: Path, plain: dict[str, Any]) -> Source:
    return Source(
        _path(folder, plain.get("file")),
        plain["format"],
        plain.get("sha256", ""),
        plain.get("size_bytes", 0),
        plain.get("name"),
    )


def _path(folder: Path, name: str | None) -> Path | None:
    return folder / name if name else None
