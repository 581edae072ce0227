"""From the steps of a spec to what is done in order: a prune step may be several cuts with training between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from app.spec.schema import Distill, Finetune, Prune, PruneTargets, SparsityTraining, Spec
from app.spec.sensitivity import Sensitivity
from app.spec.targets import Target


@dataclass(frozen=True)
class Unit:
    """One thing to do. `is_on_the_way`: a cut towards a target that a later one meets, or training that nobody asked for
    as a step: it may come to nothing. `imitating` is the number of steps of a short distillation without labels. `num_before`
    units of the same step came before this one. `sparsifying` adds a penalty to the loss.
    """

    options: Prune | Distill | Finetune | Sensitivity
    is_on_the_way: bool = False
    imitating: int | None = None
    num_before: int = 0
    sparsifying: SparsityTraining | None = None

    @property
    def kind(self) -> str:
        """`prune`, `distill`, `finetune`, `sensitivity` or `sparsify`: the stage's name."""
        return "sparsify" if self.sparsifying else type(self.options).__name__.lower()


def expand(spec: Spec) -> list[Unit]:
    """All units of a spec, in order."""
    units: list[Unit] = []
    for step in spec.steps:
        options = step.prune or step.distill or step.finetune or step.sensitivity
        assert options is not None
        units += _cuts(options) if isinstance(options, Prune) else [Unit(options)]
    return units


def kept_share(final: float, done: float, schedule: str) -> float:
    """The share that is left when `done` (0 to 1) of the cuts are made and `final` is what the last one leaves.

    `linear` removes the same share each time, `geometric` the same share of what is left, `cubic` much at first (Zhu and
    Gupta 2017, arXiv 1710.01878).
    """
    match schedule:
        case "geometric":
            return float(final**done)
        case "cubic":
            return 1 - (1 - final) * (1 - (1 - done) ** 3)
        case _:
            return 1 - (1 - final) * done


def _cuts(prune: Prune) -> list[Unit]:
    units: list[Unit] = []
    if prune.sparsity_training:
        units.append(Unit(Distill(epochs=prune.sparsity_training.epochs), sparsifying=prune.sparsity_training))
    for number in range(1, prune.iterations + 1):
        is_last = number == prune.iterations
        target = prune.target if is_last else _towards(prune, number / prune.iterations)
        units.append(Unit(prune.model_copy(update={"target": target}), not is_last))
        if prune.recovery != "none" and prune.recovery.distill:
            units.append(Unit(Distill(), is_on_the_way=True, imitating=prune.recovery.distill))
        if not is_last and prune.epochs_between:
            units.append(Unit(Distill(epochs=prune.epochs_between), is_on_the_way=True))
    return [replace(unit, num_before=number) for number, unit in enumerate(units)]


def _towards(prune: Prune, done: float) -> PruneTargets | None:
    if prune.target is None:
        return None

    def way(final: float) -> float:
        return kept_share(final, done, prune.schedule)

    def zeros(final: float) -> float:
        return 1 - way(1 - final)

    given = {name: getattr(prune.target, name) for name in PruneTargets.model_fields}
    ways: dict[str, Callable[[float], float]] = {name: zeros if name == "sparsity" else way for name in given}
    return prune.target.model_copy(
        update={name: Target.eased(target, ways[name]) for name, target in given.items() if target is not None}
    )
