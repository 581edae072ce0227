"""Torch-Pruning on a live network, with its own settings, cut until the MACs are those that were asked for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.fashion import Rows

_STEPS = 12
_NEAR = 0.002
_BATCH = 128
#: What no layer loses more than: without it a global ranking takes whole layers at a tenth of the MACs.
_MOST = 0.9

IMPORTANCES: dict[str, Callable[[], Any]] = {
    "group-l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "group-l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda: tp.importance.GroupTaylorImportance(),
    "bn-scale": lambda: tp.importance.BNScaleImportance(),
}
SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Variant:
    """A criterion of Torch-Pruning, and whether one ranking is made over all layers or one in each."""

    importance: str
    scope: str

    @property
    def name(self) -> str:
        return f"{self.importance}, {self.scope}"


VARIANTS = [Variant(*pair) for pair in product(IMPORTANCES, SCOPES)]


def macs_of(net: nn.Module, picture: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers for one picture."""
    found: list[int] = []

    def note(layer: Any, _: Any, output: Tensor) -> None:
        found.append(output[0].numel() * layer.weight[0].numel())

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        net.eval()(picture)
    for hook in hooks:
        hook.remove()
    return sum(found)


def cut_to(net: nn.Module, picture: Tensor, macs: int, variant: Variant, rows: Rows) -> nn.Module:
    """A copy that is cut once, with the pruning ratio whose MACs come nearest; the rows, with their classes, are Taylor's."""
    gradients = _gradients(net, rows) if variant.importance == "taylor" else {}
    whole, low, high = macs_of(net, picture), 0.0, 1.0
    best, distance = net, abs(whole - macs)
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        made = _cut(net, picture, ratio, variant, gradients)
        found = macs_of(made, picture)
        if abs(found - macs) < distance:
            best, distance = made, abs(found - macs)
        if distance <= _NEAR * whole:
            break
        low, high = (ratio, high) if found > macs else (low, ratio)
    return best


def reestimated(net: nn.Module, rows: Rows) -> nn.Module:
    """A copy whose BatchNorm statistics are those of the rows."""
    made = copy.deepcopy(net)
    layers = [layer for layer in made.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        made.train()(rows.batch(slice(None))[0])
    for layer in layers:
        layer.momentum = 0.1
    return made.eval()


def _cut(net: nn.Module, picture: Tensor, ratio: float, variant: Variant, gradients: dict[str, Tensor]) -> nn.Module:
    made = copy.deepcopy(net)
    for name, parameter in made.named_parameters():
        parameter.grad = gradients[name].clone() if gradients else None
    head = [layer for layer in made.modules() if isinstance(layer, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            made,
            picture,
            importance=IMPORTANCES[variant.importance](),
            global_pruning=variant.scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=_MOST,
            ignored_layers=[head],
        )
        pruner.step()
    made.zero_grad(set_to_none=True)
    return made.eval()


def _gradients(net: nn.Module, rows: Rows) -> dict[str, Tensor]:
    """The gradient of the mean loss with respect to each parameter."""
    made = copy.deepcopy(net).eval()
    for pictures, classes in _batches(rows):
        (F.cross_entropy(made(pictures), classes, reduction="sum") / len(rows)).backward()
    return {name: parameter.grad for name, parameter in made.named_parameters() if parameter.grad is not None}


def _batches(rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), _BATCH):
        yield rows.batch(slice(start, start + _BATCH))
