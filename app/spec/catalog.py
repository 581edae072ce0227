"""What a spec may name: criteria, losses and the rest, as the worker's registries know them.

`catalog.json` is generated from those registries (`make catalog`) and checked in, so that the API can refuse an unknown
name without loading torch; a test fails when the two differ.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def load_catalog() -> dict[str, list[dict[str, Any]]]:
    """The catalog: for each kind (`criteria`, `losses`…) its entries `{name, help, needs, options}`."""
    catalog: dict[str, list[dict[str, Any]]] = json.loads(
        resources.files("app.spec").joinpath("catalog.json").read_text()
    )
    return catalog


@functools.cache
def known_names(kind: str) -> tuple[str, ...]:
    """The names of one kind, in the catalog's order."""
    return tuple(entry["name"] for entry in load_catalog()[kind])


def needs_of(kind: str, name: str) -> list[str]:
    """What a job must bring for that entry: `data`, `labels`."""
    return list(_entry(kind, name)["needs"])


def structures_of(criterion: str) -> list[str]:
    """The structures that a criterion scores."""
    return list(_entry("criteria", criterion)["structures"])


def _entry(kind: str, name: str) -> dict[str, Any]:
    return next(entry for entry in load_catalog()[kind] if entry["name"] == name)
