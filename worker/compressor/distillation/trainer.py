"""Training a network on rows: one loop for distillation and fine-tuning.

Guarantees: the result is never worse on the validation rows than what came in (`Plan.is_lenient`: never surely worse); the
same seed on the same number of threads gives the same weights, also when the run was interrupted at an epoch and resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from app.spec.schema import Optimizer
from worker.compressor.distillation.lessons import Lesson, Lessons
from worker.compressor.distillation.objective import LossFunction
from worker.compressor.distillation.optimizers import OPTIMIZERS
from worker.compressor.distillation.precision import training_precision
from worker.compressor.distillation.schedule import learning_rate
from worker.compressor.evaluation.judge import Score, module_runner
from worker.compressor.evaluation.runtime import Feeds, Outputs
from worker.compressor.graph.training.batch import Call, in_pieces
from worker.compressor.outcome import keep_whole

MAX_GRADIENT_NORM = 1.0
REPORT_SECONDS = 0.5
#: Steps between two looks at the validation rows, where a number of steps is asked for.
FEWEST_STEPS = 25


@dataclass(frozen=True)
class Plan:
    """What to train with. `stream` tells apart the steps of a job that share its seed.

    `rows_at_once`: the only number of rows that the network takes, where its batch is fixed for good. It goes through a
    batch in pieces then, and its normalisations keep their statistics. `max_steps`: so many steps in all, in place of
    `epochs`; what is called an epoch is then about a pass over the rows, or more where these are few. `keep_last`: the last
    epoch counts, not the best. `keep_statistics`: those of BatchNorm stay as they are. `is_lenient`: what came in gives way to
    the first epoch that is not surely worse; for validation rows that the original has learnt: what imitates it has some
    of them by heart, and loses that in training before it loses anything else.
    """

    epochs: int
    batch_size: int
    optimizer: Optimizer
    seed: int
    stream: int
    rows_at_once: int | None = None
    max_steps: int | None = None
    keep_last: bool = False
    keep_statistics: bool = False
    is_lenient: bool = False


@dataclass
class Hooks:
    """What the trainer tells the job: a share of the work done, a metric, and each new best network."""

    progress: Callable[[float], None]
    metric: Callable[[str, int, float], None]
    improved: Callable[[GraphModule], None]
    check: Callable[[], None]


@dataclass
class Trained:
    """How it went. `diverged` is why the loss was no use, None where it was sound."""

    best: Score
    start: Score
    best_epoch: int
    losses: list[float] = field(default_factory=list)
    precision: str = "float32"
    diverged: str | None = None


class Trainer:
    """Trains one module in place and leaves it at its best epoch; the start counts as epoch 0.

    `zeros` names parameters whose zeros stay zero: no gradient reaches them, and decay leaves 0 as it is. `untouched` names
    parameters and buffers that stay as they are. `penalty` is added to the loss.
    """

    def __init__(
        self,
        module: GraphModule,
        lessons: Lessons,
        objective: LossFunction,
        judge: Callable[[Callable[[Feeds], Outputs]], Score],
        plan: Plan,
        hooks: Hooks,
        device: torch.device,
        zeros: frozenset[str] = frozenset(),
        untouched: frozenset[str] = frozenset(),
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        self.module = fast_layout(module, device)
        self._call: Call = self.module if plan.rows_at_once is None else in_pieces(self.module, plan.rows_at_once)
        self._lessons, self._objective = lessons, objective
        self._judge, self._plan, self._hooks, self._device = judge, plan, hooks, device
        self._batch = min(plan.batch_size, len(lessons))
        self._steps_per_epoch, self._epochs = max(1, len(lessons) // self._batch), plan.epochs
        if plan.max_steps is not None:
            self._epochs = -(-plan.max_steps // max(self._steps_per_epoch, FEWEST_STEPS))
            self._steps_per_epoch = -(-plan.max_steps // self._epochs)
        self._untouched = {name: value for name, value in _weights(self.module).items() if name in untouched}
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in untouched)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        kind = OPTIMIZERS.get(plan.optimizer.name)()
        self._optimizer = kind.build(self._parameters, plan.optimizer.lr, plan.optimizer.weight_decay)
        self._precision = training_precision(module, device)
        self._told, self._penalty = 0.0, penalty
        for name, parameter in self.module.named_parameters():
            if name in zeros and parameter.requires_grad:
                parameter.register_hook((parameter.detach() != 0).to(parameter.dtype).mul)

    def train(self, checkpoint: Path | None) -> Trained:
        """Train to the end, from `checkpoint` where that holds a state, saving it there after every epoch."""
        state = self._resume(checkpoint)
        if state is None:
            start = self._score()
            state = _State(Trained(start, start, 0), 0, _weights(self.module))
        while state.epoch < self._epochs and state.trained.diverged is None:
            self._epoch(state)
            if state.trained.diverged is None:
                self._save(checkpoint, state)
        self.module.load_state_dict(state.best)
        self.module.eval()
        state.trained.precision = str(self._precision).removeprefix("torch.")
        return state.trained

    def _epoch(self, state: _State) -> None:
        rng = np.random.default_rng([self._plan.seed, self._plan.stream, state.epoch])
        passes = -(-self._steps_per_epoch * self._batch // len(self._lessons))
        order = np.concatenate([rng.permutation(len(self._lessons)) for _ in range(passes)])
        self.module.train(self._plan.rows_at_once is None and not self._plan.keep_statistics)
        losses = []
        for step in range(self._steps_per_epoch):
            lesson = self._lessons.at(order[step * self._batch : (step + 1) * self._batch], rng)
            losses.append(self._step(lesson, state.epoch * self._steps_per_epoch + step))
            if not math.isfinite(losses[-1]):
                state.trained.diverged = "the loss is not finite"
                return
            self._tell(state.epoch * self._steps_per_epoch + step, losses)
        self.module.eval()
        self.module.load_state_dict(self._untouched, strict=False)  # statistics move in training
        state.epoch += 1
        state.trained.losses.append(float(np.mean(losses)))
        score = self._score()
        self._hooks.metric(f"val_{score.name}", state.epoch * self._steps_per_epoch, abs(score.value))
        if self._plan.keep_last or self._is_better(score, state.trained):
            state.trained.best, state.trained.best_epoch, state.best = score, state.epoch, _weights(self.module)
            self._hooks.improved(self.module)
        if _rose(losses) and _fell(state.trained.start, score):
            state.trained.diverged = "the loss rises"

    def _is_better(self, score: Score, trained: Trained) -> bool:
        if self._plan.is_lenient and trained.best_epoch == 0:
            return not score.is_surely_below(trained.start)
        return score > trained.best

    def _step(self, lesson: Lesson, step: int) -> float:
        for group in self._optimizer.param_groups:
            total = self._epochs * self._steps_per_epoch
            group["lr"] = learning_rate(step, total, self._plan.optimizer.lr, self._plan.optimizer.schedule)
        with torch.autocast(self._device.type, self._precision, enabled=self._precision is not torch.float32):
            outputs = self._call(*lesson.inputs)
        loss = self._objective(outputs, lesson.taught, lesson.labels)
        if self._penalty is not None:
            loss = loss + self._penalty()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._optimizer.step()
        return float(loss.detach())

    def _tell(self, step: int, losses: list[float]) -> None:
        self._hooks.check()
        if time.monotonic() - self._told < REPORT_SECONDS:
            return
        self._told = time.monotonic()
        self._hooks.progress((step + 1) / (self._epochs * self._steps_per_epoch))
        self._hooks.metric("loss", step + 1, float(np.mean(losses[-20:])))

    def _score(self) -> Score:
        self.module.eval()
        return self._judge(module_runner(self._call, self._device))

    def _save(self, path: Path | None, state: _State) -> None:
        if path is None:
            return
        plain = {
            "epoch": state.epoch,
            "module": _weights(self.module),
            "optimizer": self._optimizer.state_dict(),
            "best": state.best,
            "trained": _plain(state.trained),
        }
        temporary = path.with_name(path.name + ".tmp")
        torch.save(plain, temporary)
        keep_whole(temporary, path)

    def _resume(self, path: Path | None) -> _State | None:
        if path is None or not path.exists():
            return None
        plain = torch.load(path, weights_only=True, map_location=self._device)
        self.module.load_state_dict(plain["module"])
        self._optimizer.load_state_dict(plain["optimizer"])
        told = plain["trained"]
        trained = Trained(_score(told["best"]), _score(told["start"]), told["best_epoch"], told["losses"])
        return _State(trained, plain["epoch"], plain["best"])


@dataclass
class _State:
    trained: Trained
    epoch: int
    best: dict[str, Tensor]


def _plain(trained: Trained) -> dict[str, Any]:
    def score(one: Score) -> list[Any]:
        return [one.value, one.tie_break, one.name, None if one.rows is None else torch.from_numpy(one.rows)]

    return {
        "best": score(trained.best),
        "start": score(trained.start),
        "best_epoch": trained.best_epoch,
        "losses": list(trained.losses),
    }


def _score(plain: list[Any]) -> Score:
    value, tie_break, name, rows = plain
    return Score(value, tie_break, name, None if rows is None else rows.numpy())


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return deepcopy({name: value.detach() for name, value in module.state_dict().items()})


def fast_layout(module: GraphModule, device: torch.device) -> GraphModule:
    """Pictures channel by channel for every pixel: convolutions train 1.2 times faster on a CPU."""
    return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _fell(start: Score, score: Score) -> bool:
    """Whether a network lost a tenth of its value: a refit network stands in a minimum, and some rise is how it leaves it."""
    return start.value - score.value > 0.1 * abs(start.value)


def _rose(losses: list[float]) -> bool:
    """Whether the last tenth of an epoch is clearly above its first, where there are steps enough to tell."""
    tenth = len(losses) // 10
    return tenth > 0 and float(np.mean(losses[-tenth:])) > 1.5 * float(np.mean(losses[:tenth])) + 1e-8
