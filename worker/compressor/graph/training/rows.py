"""Take out of a recorded graph what puts the rows of a parameter back in the order in which it has them.

TorchScript keeps the weights of recurrent layers as torch orders gates, ONNX wants another order, and torch's functions
want their own again. Both ways cancel: what remains is the parameter itself, at no cost in the training step.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn


@dataclass(frozen=True)
class Run:
    """Rows `start` to `stop` of a parameter."""

    source: fx.Node
    start: int
    stop: int


#: What is known of a value: runs of rows one below the other; for a stack, or a list, one such tuple each.
Rows = tuple[Run, ...]
Known = Rows | list[Rows]


def cancel(graph: fx.Graph, root: nn.Module) -> None:
    """Replace every value that is a whole parameter, row by row, by the parameter."""
    known: dict[fx.Node, Known] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(root, str(node.target), None)
            if isinstance(value, torch.Tensor) and value.ndim:
                known[node] = (Run(node, 0, value.shape[0]),)
        elif node.op == "call_function":
            found = _follow(node, known)
            if found is None:
                continue
            known[node] = found
            if isinstance(found, tuple) and len(found) == 1 and known[found[0].source] == found:
                node.replace_all_uses_with(found[0].source)
    graph.eliminate_dead_code()


def _follow(node: fx.Node, known: dict[fx.Node, Known]) -> Known | None:
    """What the node makes of rows; None where it does something else."""
    arguments: tuple[Any, ...] = node.args
    first = arguments[0] if arguments else None
    if node.target is torch.cat:
        return _joined([known.get(part) for part in first], arguments[1:]) if isinstance(first, list | tuple) else None
    value = known.get(first) if isinstance(first, fx.Node) else None
    if value is None or not all(isinstance(number, int) for number in arguments[1:]):
        return None
    if isinstance(value, list):
        return _opened(node.target, value, arguments[1:])
    if node.target is torch.unsqueeze and arguments[1] == 0:
        return [value]
    if node.target is torch.ops.aten.slice and arguments[1] == 0 and (*arguments, 1)[4] == 1:
        start, stop, _ = slice(*arguments[2:4]).indices(_length(value))
        return _cut(value, start, stop)
    if node.target is torch.narrow and arguments[1] == 0:
        return _cut(value, arguments[2], arguments[2] + arguments[3])
    if node.target is torch.split and arguments[2:] in ((), (0,)):
        size = arguments[1]
        return [_cut(value, start, start + size) for start in range(0, _length(value), size)]
    return None


def _opened(target: Any, value: list[Rows], arguments: tuple[Any, ...]) -> Known | None:
    if target is operator.getitem:
        return value[arguments[0]]
    if target is torch.unbind and arguments in ((), (0,)):
        return value
    if target is torch.squeeze and arguments == (0,) and len(value) == 1:
        return value[0]
    return None


def _joined(parts: list[Known | None], arguments: tuple[Any, ...]) -> Known | None:
    if arguments not in ((), (0,)) or not parts or any(part is None for part in parts):
        return None
    if all(isinstance(part, list) for part in parts):
        return [rows for part in parts for rows in part or ()]  # type: ignore[misc]
    merged: list[Run] = []
    for part in parts:
        if not isinstance(part, tuple):
            return None
        for run in part:
            if merged and merged[-1].source is run.source and merged[-1].stop == run.start:
                run = Run(run.source, merged.pop().start, run.stop)
            merged.append(run)
    return tuple(merged)


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    found, at = [], 0
    for run in rows:
        length = run.stop - run.start
        first, last = max(start - at, 0), min(stop - at, length)
        if first < last:
            found.append(Run(run.source, run.start + first, run.start + last))
        at += length
    return tuple(found)


def _length(rows: Rows) -> int:
    return sum(run.stop - run.start for run in rows)
