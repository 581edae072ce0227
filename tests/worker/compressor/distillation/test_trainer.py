"""The training loop: it learns, it never returns worse, and an interrupted run ends where an uninterrupted one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from app.spec.schema import Loss, Optimizer
from tests.worker.compressor.networks import pictures
from worker.compressor.data.dataset import Rows
from worker.compressor.data.preprocess import Preparation
from worker.compressor.distillation.lessons import AnsweredRows
from worker.compressor.distillation.objective import Objective, output_kind
from worker.compressor.distillation.trainer import Hooks, Plan, Trainer
from worker.compressor.evaluation.judge import Judge
from worker.compressor.evaluation.original import Original
from worker.compressor.evaluation.runtime import Runner

X, Y = pictures(300)
ROWS = Rows("train", (X,), Y, np.arange(300), (Preparation("image", "float32", None),))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))

    def forward(self, image):
        return (self.layers(image / 128 - 1),)


class Teacher(Runner):
    def run(self, feeds):
        top, left = (
            feeds[0][:, 0, :4].mean((1, 2)) > feeds[0][:, 0, 4:].mean((1, 2)),
            feeds[0][:, 0, :, :4].mean((1, 2)) > feeds[0][:, 0, :, 4:].mean((1, 2)),
        )
        classes = 2 * ~top + ~left
        return (np.eye(4, dtype=np.float32)[classes] * 8,)


class Stopped(Exception):
    pass


def trainer(module, epochs=4, lr=3e-3, check=lambda: None, labels=True, told=None, **plan):
    original = Original(Teacher(), "teacher", None)
    rows = ROWS if labels else Rows("train", (X,), None, np.arange(300), ROWS.preparations)
    original.learn(rows)
    kind = output_kind(original.answers(rows, slice(None))[0], "classification")
    objective = Objective(Loss(hard=0.3 if labels else 0.0), "classification", (kind,))
    hooks = Hooks(
        lambda share: None, lambda *metric: None if told is None else told.append(metric), lambda module: None, check
    )
    plan = Plan(epochs, 32, Optimizer(lr=lr), 0, 0, **plan)
    return Trainer(
        module,
        AnsweredRows(rows, torch.device("cpu"), original),
        objective,
        Judge(rows, original, "classification" if labels else "none", 0),
        plan,
        hooks,
        torch.device("cpu"),
    )


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("labels", [True, False])
def test_it_learns(labels):
    told = []
    trained = trainer(Net(), labels=labels, told=told).train(None)
    assert trained.best.value > 0.9 > trained.start.value and trained.diverged is None
    assert trained.best.name == ("accuracy" if labels else "agreement")
    assert {name for name, _, _ in told} == {"loss", f"val_{trained.best.name}"}


def test_the_best_is_kept_the_start_included():
    module = Net()
    trainer(module).train(None)
    good = {name: value.clone() for name, value in module.state_dict().items()}
    trained = trainer(module, lr=10.0, epochs=1).train(None)
    assert trained.best_epoch == 0
    assert all(torch.equal(value, good[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("lr", "stays"), [(1e-5, False), (10.0, True)])
def test_a_start_that_knows_the_rows_by_heart_gives_way_to_what_is_not_surely_worse(lr, stays):
    module = Net()
    trainer(module).train(None)
    judged = trainer(module, lr=lr, epochs=1, is_lenient=True)
    judged._judge = worse_by(judged._judge, 1)
    assert (judged.train(None).best_epoch == 0) == stays


def worse_by(judge, num_rows):
    """So many rows less right with each call."""
    calls = -1

    def judged(run):
        nonlocal calls
        calls, score = calls + 1, judge(run)
        rows = score.rows.copy()
        rows[np.flatnonzero(rows)[: calls * num_rows]] = 0
        return replace(score, value=rows.mean(), rows=rows)

    return judged


def test_a_loss_that_is_not_finite_is_told():
    module = Net()
    with torch.no_grad():
        module.layers[0].weight.fill_(torch.inf)
    assert trainer(module).train(None).diverged == "the loss is not finite"


def test_resumed_run_is_the_same_to_the_bit(tmp_path):
    whole = Net()
    halves = [Net(), Net()]
    for half in halves:
        half.load_state_dict(whole.state_dict())
    trainer(whole).train(None)
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        if steps > 2.5 * (300 // 32):
            raise Stopped

    with pytest.raises(Stopped):
        trainer(halves[0], check=stop).train(tmp_path / "state.pt")
    trainer(halves[1]).train(tmp_path / "state.pt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves[1].state_dict()[name]), name
