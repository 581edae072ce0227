"""What every stage of a job shares: the request, the seed, the clock, and the way to tell the client what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from app.spec.schema import Spec
from worker.compressor.errors import RunAborted
from worker.compressor.request import Request

TELL_SECONDS = 0.5


@dataclass
class Stage:
    """One finished or running stage: its time and what was measured in it."""

    name: str
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


class Context:
    """Progress, metrics, warnings and randomness of one attempt. `plan` gives each coming stage its share of the work."""

    def __init__(
        self,
        request: Request,
        emit: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
        plan: list[tuple[str, float]],
    ) -> None:
        assert request.spec is not None
        self.request = request
        self.spec: Spec = request.spec
        self.warnings: list[str] = []
        self.stages: list[Stage] = []
        self._emit, self._should_stop = emit, should_stop
        self._plan, self._at = plan, -1
        self._begun = time.monotonic()
        self._told = 0.0

    @property
    def device(self) -> torch.device:
        """Where training runs."""
        wanted = self.request.device
        is_there = torch.cuda.is_available()
        return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and is_there) else "cpu")

    def rng(self, stream: int) -> np.random.Generator:
        """Randomness of the job's seed; streams are independent of each other."""
        return np.random.default_rng([self.spec.seed, 100 + stream])

    def skip(self) -> None:
        """The next stage of the plan was done in an earlier attempt."""
        self._at += 1

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage and make it the one that progress belongs to; stages come in the plan's order."""
        self._at += 1
        assert self._plan[self._at][0] == name, (name, self._plan, self._at)
        stage = Stage(name)
        self.stages.append(stage)
        start = time.monotonic()
        self._tell(0.0)
        try:
            yield stage
        finally:
            stage.seconds += time.monotonic() - start

    def progress(self, share: float) -> None:
        """How much of the stage is done, 0 to 1; told at most twice a second."""
        self.check()
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._tell(share)

    def check(self) -> None:
        """Raises `RunAborted` where the run was told to stop."""
        if self._should_stop():
            raise RunAborted("the run was told to stop")

    def metric(self, name: str, step: int, value: float) -> None:
        """One point of a series of the current stage."""
        if np.isfinite(value):
            stage = self._plan[self._at][0]
            self._emit({"kind": "metric", "name": name, "step": step, "stage": stage, "value": float(value)})

    def log(self, message: str) -> None:
        """A line for the job's log."""
        self._emit({"kind": "log", "level": "info", "message": message[:2000]})

    def warn(self, message: str) -> None:
        """A warning that stays with the job; said once."""
        if message not in self.warnings:
            self.warnings.append(message)
            self._emit({"kind": "warning", "message": message[:2000]})

    def _tell(self, share: float) -> None:
        self.check()
        self._told = time.monotonic()
        name, weight = self._plan[self._at]
        done = sum(w for _, w in self._plan[: self._at]) + weight * min(max(share, 0.0), 1.0)
        progress = done / sum(w for _, w in self._plan)
        event: dict[str, Any] = {"kind": "progress", "stage": name, "progress": round(min(progress, 0.99), 4)}
        elapsed = time.monotonic() - self._begun
        if progress > 0.05:
            event["eta_seconds"] = round(elapsed * (1 - progress) / progress, 1)
        self._emit(event)
