"""An attempt's work folder `<work>/<id>-<attempt>/` and the job's checkpoints beside it; what the engine finds there."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.storage.interface import Storage
from worker.lease import Claim

_NAME = re.compile(r"((?:job|mdl|dst)_[0-9a-z]{26})-(\d+|checkpoints)")


@dataclass(frozen=True)
class WorkFolder:
    """Paths of one attempt. `root` is the worker's folder for scratch files."""

    root: Path
    claim: Claim

    @property
    def path(self) -> Path:
        """The attempt's own folder."""
        return self.root / f"{self.claim.item_id}-{self.claim.attempt}"

    @property
    def checkpoints(self) -> Path:
        """The folder that outlives an attempt, so that the next one goes on from there."""
        return self.root / f"{self.claim.item_id}-checkpoints"

    @property
    def lock(self) -> Path:
        """Held by the one process that works on this job."""
        return self.checkpoints / "lock"

    def make(self) -> None:
        """An empty folder; what earlier attempts left is removed."""
        for old in self.root.glob(f"{self.claim.item_id}-[0-9]*"):
            shutil.rmtree(old, ignore_errors=True)
        make_inner(self.path)
        if self.claim.is_job:
            self.checkpoints.mkdir(exist_ok=True)

    def remove(self, *, with_checkpoints: bool) -> None:
        """Remove the attempt's folder; with the checkpoints when the job has ended."""
        shutil.rmtree(self.path, ignore_errors=True)
        if with_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)


def make_inner(path: Path) -> None:
    """A folder with `input/` and `output/`."""
    for name in ("input", "output"):
        (path / name).mkdir(parents=True)


def put_blob(storage: Storage, sha256: str, target: Path, *, as_copy: bool = False) -> None:
    """Give the engine a blob: as a link, or as a copy where untrusted code might write to it."""
    source = storage.local_path(sha256)
    if not as_copy:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            pass  # another file system
    shutil.copyfile(source, target)
    target.chmod(0o444)


def write_request(path: Path, request: dict[str, Any]) -> None:
    """Write `request.json`."""
    (path / "request.json").write_text(json.dumps(request, allow_nan=False))


def read_name(path: Path) -> tuple[str, int | None] | None:
    """The id and the attempt of a scratch folder (None for checkpoints); None for a name that is none of ours."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        return None
    return found[1], None if found[2] == "checkpoints" else int(found[2])
