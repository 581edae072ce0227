"""Choosing widths until every target is met, those that only a file can show included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.spec.schema import Prune
from worker.compressor.errors import NothingRemoved, TargetUnreachable
from worker.compressor.graph.proof import Proof
from worker.compressor.graph.surgery import Cut
from worker.compressor.job import Job
from worker.compressor.pruning.structures import Choice, Narrowing
from worker.compressor.steps.cutting import proven_cut
from worker.compressor.steps.gauges import Gauge, SizeGauge
from worker.compressor.steps.latency import LatencyGauge
from worker.compressor.steps.limits import ceilings_of

MOST_ROUNDS = 5


@dataclass(frozen=True)
class _Shot:
    """A cut and what was measured on it, by target."""

    choice: Choice
    cut: Cut
    proof: Proof
    found: Mapping[str, float]


def cut_to_targets(
    job: Job, step: int, options: Prune, structure: Narrowing
) -> tuple[Choice, Cut, Proof, Mapping[str, float]]:
    """The proven cut that meets the targets, as near to them as was found, and its measured figures.

    Where what was predicted is not what is measured, the prediction learns from it, and widths are chosen again.

    Raises:
        TargetUnreachable, NothingRemoved, DataNeeded: see `Narrowing.choose`.
    """
    gauges = gauges_of(job, step, options, structure)
    ceilings = ceilings_of(job, options) | {gauge.name: gauge.ceiling for gauge in gauges}
    prices = {gauge.name: gauge.price for gauge in gauges}
    shots: list[_Shot] = []
    for _ in range(MOST_ROUNDS):
        try:
            choice, made, proof = proven_cut(job, step, structure, ceilings, prices)
        except (NothingRemoved, TargetUnreachable):
            if not any(_is_allowed(shot, gauges) for shot in shots):
                raise
            break
        if any(_is_same(shot.choice, choice) for shot in shots):
            break
        found = {gauge.name: gauge.measure(made.network, structure.costs, choice.kept) for gauge in gauges}
        shots.append(_Shot(choice, made, proof, found))
        if _is_allowed(shots[-1], gauges) and all(gauge.is_near(found[gauge.name]) for gauge in gauges):
            break
    best = max(shots, key=lambda shot: _worth(shot, gauges))
    return best.choice, best.cut, best.proof, best.found


def gauges_of(job: Job, step: int, options: Prune, structure: Narrowing) -> list[Gauge]:
    """What measures the targets that cannot be counted."""
    target, gauges = options.target, list[Gauge]()
    assert target is not None
    if target.size is not None:
        gauges.append(SizeGauge(job, target.size.resolve(job.uploaded[1]), structure.costs))
    if target.latency_ms is not None:
        widths = structure.candidates(job.context.rng(step), {})
        gauges.append(LatencyGauge(job, target.latency_ms, structure, widths))
    return gauges


def _is_allowed(shot: _Shot, gauges: Sequence[Gauge]) -> bool:
    return all(gauge.allows(shot.found[gauge.name]) for gauge in gauges)


def _worth(shot: _Shot, gauges: Sequence[Gauge]) -> tuple[bool, float]:
    """First come cuts that meet the targets, the nearest of them; of those that do not, the one that misses by least."""
    shares = [shot.found[gauge.name] / gauge.ceiling for gauge in gauges]
    is_allowed = _is_allowed(shot, gauges)
    return is_allowed, sum(shares) if is_allowed else -max(shares)


def _is_same(one: Choice, other: Choice) -> bool:
    return {group: units.tolist() for group, units in one.kept.items()} == {
        group: units.tolist() for group, units in other.kept.items()
    }
