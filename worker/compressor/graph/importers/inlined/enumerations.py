"""Members of enumerations in TorchScript: torch hands them over as Python's own, whose classes stayed with their authors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Member:
    """A member by the names of its enumeration and its own; two are equal where these are."""

    enumeration: str
    name: str


class _Enumeration:
    """Stands for the Python class: has whatever member it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, member: str) -> Member:
        return Member(self._name, member)


def announce(kind: Any) -> None:
    """Let torch hand over values of this type: every enumeration in it that Python does not know gets a stand-in."""
    if kind.kind() == "EnumType":
        known: dict[str, Any] = torch.jit._state._name_to_pyclass
        known.setdefault(kind.annotation_str, _Enumeration(kind.annotation_str))
    for inner in kind.containedTypes():
        announce(inner)
