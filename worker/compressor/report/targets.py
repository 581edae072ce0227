"""What was asked for, and whether the finished files have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.spec.schema import Spec
from app.spec.targets import LatencyTarget, Target

Figures = Mapping[str, Any]
Row = Mapping[str, Any]

#: A latency is met within so much, since no two measurements agree better.
LATENCY_SLACK = 1.05
_KEYS = {"macs": "macs", "params": "num_params"}


@dataclass(frozen=True)
class Verdict:
    """One target: the most it allows (of `sparsity`: the least), what there is, and whether that will do."""

    name: str
    limit: float
    found: float
    is_met: bool

    @property
    def detail(self) -> str:
        """What a miss is told as."""
        if self.name == "sparsity":
            return f"only {self.found:.2%} of the finished network's weights are 0, {self.limit:.2%} were asked for"
        return f"{self.name} of the finished network is {self.found:.10g}, more than the target of {self.limit:.10g}"


def asked_targets(spec: Spec) -> dict[str, Target]:
    """The targets of all prune steps, the last one of each name."""
    given = [step.prune.target for step in spec.steps if step.prune and step.prune.target]
    return {name: getattr(targets, name) for targets in given for name in sorted(targets.given)}


def judge(
    asked: Mapping[str, Target], before: Figures, after: Figures, formats: tuple[str, str], batch: int | None
) -> list[Verdict]:
    """A verdict on each target, by the figures `baseline` and `compressed` of a result.

    `formats` are those of the upload and of the file whose size is compared with it, `batch` is that of a latency target.
    """
    return [_verdict(name, target, before, after, formats, batch) for name, target in asked.items()]


def summary(asked: Mapping[str, Target], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """`{asked, met}`."""
    return {
        "asked": {name: target.asked for name, target in asked.items()},
        "met": all(verdict.is_met for verdict in verdicts),
    }


def latency_verdict(target: Target, before: Sequence[Row], after: Sequence[Row], batch: int | None) -> Verdict:
    """Of rows `{batch, min}` of both networks, measured in one run."""
    old, new = (next(row["min"] for row in rows if row["batch"] == batch) for rows in (before, after))
    limit = target.limit(old)
    return Verdict("latency_ms", limit, new, new <= LATENCY_SLACK * limit)


def _verdict(
    name: str, target: Target, before: Figures, after: Figures, formats: tuple[str, str], batch: int | None
) -> Verdict:
    if isinstance(target, LatencyTarget):
        return latency_verdict(target, before["latency_ms"], after["latency_ms"], batch)
    if name == "sparsity":
        zeros, share = after["num_params"] - after["nonzero_params"], target.share or 0.0
        return Verdict(name, share, zeros / after["num_params"], zeros >= share * after["num_params"])
    if name == "size":
        uploaded, made = formats
        whole, found = before["size_bytes"][uploaded], after["size_bytes"].get(made, float("inf"))
    else:
        whole, found = before[_KEYS[name]], after[_KEYS[name]]
    limit = target.resolve(whole)
    return Verdict(name, limit, found, found <= limit)
