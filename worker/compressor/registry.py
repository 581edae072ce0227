"""A registry of plug-ins: one file per entry, found by importing every module of one package on first use.

Adding a criterion, a loss or an operator family is one new file that calls `register`; nothing else lists it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Hashable, Iterator
from typing import ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from worker.compressor.errors import DuplicatePlugin, UnknownPlugin


class Plugin(Protocol):
    """What the catalog shows of an entry: its name, a line of help, what it needs, and its options."""

    name: ClassVar[str]
    help: ClassVar[str]
    needs: ClassVar[list[str]]
    Options: ClassVar[type[BaseModel]]


E = TypeVar("E")
K = TypeVar("K", bound=Hashable)


class KeyedRegistry(Generic[K, E]):
    """Entries by key. `kind` names the entries in messages, `package` is imported module by module on first use."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[K, E] = {}
        self._discovered = False

    def add(self, key: K, entry: E) -> E:
        """Record `entry` under `key`.

        Raises:
            DuplicatePlugin: if the key is taken by another entry.
        """
        if key in self._entries:
            raise DuplicatePlugin(f"two {self.kind} entries are called {key!r}")
        self._entries[key] = entry
        return entry

    def get(self, key: K) -> E:
        """The entry of that key.

        Raises:
            UnknownPlugin: if there is none; names what is known.
        """
        self._discover()
        if key not in self._entries:
            known = ", ".join(sorted(str(k) for k in self._entries))
            raise UnknownPlugin(f"there is no {self.kind} {key!r}; known: {known}")
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        self._discover()
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        self._discover()
        return iter(self._entries)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # before the imports: a module of the package may ask the registry
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._discovered = False  # else the entries that are missing now would be missing for good
            raise


class Registry(KeyedRegistry[str, type[E]]):
    """Plug-in classes by their `name`; iteration is by name, in order."""

    def register(self, plugin: type[E]) -> type[E]:
        """Class decorator: the class is found under its `name` from now on.

        Raises:
            DuplicatePlugin: if the name is taken.
        """
        return self.add(plugin.name, plugin)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))
