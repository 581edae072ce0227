"""Figures that are kept one by one, so that a benchmark can be stopped and called again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Book:
    """Rows in a file of JSON lines, found by what they are about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def find(self, **about: Any) -> list[Row]:
        return [row for row in self.rows if all(row.get(key) == value for key, value in about.items())]

    def keep(self, about: Row, measure: Callable[[], Row]) -> Row:
        """The row about this, measured if it is not there."""
        if found := self.find(**about):
            return found[0]
        started = time.monotonic()
        row = about | measure()
        row["seconds"] = round(time.monotonic() - started, 1)
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
        return row
