"""LSTM, GRU and RNN: torch's fused functions where they have the form, else step by step (`cells`).

torch orders gates in another way (LSTM: i, f, g, o for ONNX's i, o, f, c; GRU: r, z, n for z, r, h). The training view
holds a weight with its rows in that order; where others read it as well, the graph puts them in order. Slots: X, W, R,
B, sequence_lens, initial_h, initial_c, P. Shape letters: S steps, B batch, D directions, G gates, H hidden units, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.compressor.graph import cells
from worker.compressor.graph.network import Node
from worker.compressor.graph.operator import Call, CutView, Operator, Rewrites, Shapes, register
from worker.compressor.graph.walk import Walk

_B, _LENS, _H0, _C0, _P = 3, 4, 5, 6, 7
#: Activations that take numbers: how many (alpha, or alpha and beta), and which they are where the node gives none.
#: For those without any onnxruntime differs from the standard, so that what was meant cannot be told.
_TAKES: dict[str, tuple[int, tuple[float, ...]]] = {
    "leakyrelu": (1, (0.01,)),
    "elu": (1, (1.0,)),
    "hardsigmoid": (2, (0.2, 0.5)),
    "thresholdedrelu": (1, ()),
    "scaledtanh": (2, ()),
    "affine": (2, ()),
}
_PLAIN = {"sigmoid", "tanh", "relu", "softsign", "softplus"}


@dataclass(frozen=True)
class Cell:
    """What tells the three operators apart.

    `order` lists ONNX's gates as torch wants them.
    """

    op: str
    num_gates: int
    activations: tuple[str, ...]
    order: tuple[int, ...]
    has_memory: bool = False


_LSTM = Cell("LSTM", 4, ("sigmoid", "tanh", "tanh"), (0, 2, 3, 1), has_memory=True)
_GRU = Cell("GRU", 3, ("sigmoid", "tanh"), (1, 0, 2))
_RNN = Cell("RNN", 1, ("tanh",), (0,))


@dataclass(frozen=True)
class _Activation:
    name: str
    alpha: float = 0.0
    beta: float = 0.0


def _run(cell: Cell) -> Callable[[Call], Any]:
    def run(call: Call) -> Any:
        x = call.tensor(0)
        batch_first = bool(call.attribute("layout", 0))
        if batch_first:
            x = torch.transpose(x, 0, 1)
        states = _states(call, cell, x, batch_first)
        functions = _activations(call, cell)
        fused = _fused(call, cell, functions)
        if fused is not None:
            y, last = _run_fused(call, cell, fused, x, states)
        else:
            y, last = _run_steps(call, cell, x, states, functions)
        if batch_first:  # [S, B, D, H] becomes [B, S, D, H], and [D, B, H] becomes [B, D, H]
            return torch.transpose(y, 0, 1), *[torch.transpose(state, 0, 1) for state in last]
        return torch.transpose(y, 1, 2), *last

    return run


def _sizes(call: Call) -> tuple[int, int]:
    """D and H."""
    directions, _, hidden = call.shape_of_constant(2)
    return directions, hidden


def _states(call: Call, cell: Cell, x: Any, batch_first: bool) -> list[Any]:
    """The initial states; where none is given, one tensor of zeros is all of them."""
    slots = (_H0, _C0) if cell.has_memory else (_H0,)
    if not any(map(call.has, slots)):
        return [_initial(call, _H0, x, batch_first)] * len(slots)
    return [_initial(call, slot, x, batch_first) for slot in slots]


def _initial(call: Call, slot: int, x: Any, batch_first: bool) -> Any:
    """The initial state `[D, B, H]`; a constant that was made for a batch of one serves any."""
    directions, hidden = _sizes(call)
    if not call.has(slot):
        return x.new_zeros([directions, x.size(1), hidden])
    state, fixed = call.tensor(slot), call.known(slot)
    if batch_first:
        state = torch.transpose(state, 0, 1).contiguous()
    if fixed is not None and fixed.shape[0 if batch_first else 1] == 1:
        state = state.expand([directions, x.size(1), hidden]).contiguous()
    return state


def _activations(call: Call, cell: Cell) -> list[list[_Activation]]:
    """For each direction its activations; alphas and betas go to those that take one, in order."""
    count = _sizes(call)[0] * len(cell.activations)
    names = [str(name).lower() for name in call.attribute("activations") or cell.activations * _sizes(call)[0]]
    if len(names) != count or not set(names) <= _PLAIN | _TAKES.keys():
        raise call.refuse(f"has the activations {names}")
    given = [list(call.attribute(f"activation_{which}") or []) for which in ("alpha", "beta")]
    found = []
    for name in names:
        number, numbers = _TAKES.get(name, (0, ()))
        chosen = [given[i].pop(0) if given[i] else numbers[i] for i in range(number) if given[i] or numbers]
        if len(chosen) < number:
            raise call.refuse(f"does not say alpha and beta of the activation {name}")
        found.append(_Activation(name, *chosen))
    return [found[i : i + len(cell.activations)] for i in range(0, count, len(cell.activations))]


def _fused(call: Call, cell: Cell, functions: list[list[_Activation]]) -> Callable[..., Any] | None:
    """The torch function that computes this form, None where there is none."""
    special = call.has(_LENS) or call.has(_P) or call.attribute("clip") or call.attribute("input_forget", 0)
    names = {tuple(function.name for function in direction) for direction in functions}
    if special or len(names) > 1:
        return None
    if cell is _RNN:
        return {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(names.pop()[0])
    if names != {cell.activations} or (cell is _GRU and not call.attribute("linear_before_reset", 0)):
        return None
    return torch.lstm if cell is _LSTM else torch.gru


def _run_fused(
    call: Call, cell: Cell, function: Callable[..., Any], x: Any, states: list[Any]
) -> tuple[Any, Sequence[Any]]:
    directions, hidden = _sizes(call)
    backwards = _is_reverse(call)
    if backwards:
        x = torch.flip(x, [0])
    weights = _weights(call, cell)
    state = states if cell.has_memory else states[0]
    made = function(x, state, weights, call.has(_B), 1, 0.0, call.training, directions == 2, False)
    y = made[0]
    if backwards:
        y = torch.flip(y, [0])
    y = torch.unsqueeze(y, 2) if directions == 1 else torch.reshape(y, [y.size(0), y.size(1), directions, hidden])
    return y, [made[number + 1] for number in range(len(states))]


def _directions(tensor: Any, number: int) -> list[Any]:
    """The weight or state of each direction. Views whose gradients are put together by one copy, unlike those of `select`."""
    if number == 1:
        return [torch.squeeze(tensor, 0)]
    parts = torch.unbind(tensor, 0)
    return [parts[direction] for direction in range(number)]


def _weights(call: Call, cell: Cell) -> list[Any]:
    """For each direction W, R and, where there are any, the biases of W and R, gates as torch orders them."""
    slots = (1, 2, _B) if call.has(_B) else (1, 2)
    made = zip(*[_of_slot(call, cell, slot, 2 if slot == _B else 1) for slot in slots], strict=True)
    return [tensor for direction in made for part in direction for tensor in part]


def _of_slot(call: Call, cell: Cell, slot: int, parts: int) -> list[list[Any]]:
    """For each direction the tensor in `parts` equal parts (the biases of W and of R), gates as torch orders them."""
    directions, hidden = _sizes(call)
    gates = [part * cell.num_gates + gate for part in range(parts) for gate in cell.order]
    order = [gate * hidden + unit for gate in gates for unit in range(hidden)]
    held = call.in_order(slot, order)
    if held is None:
        return [_ordered(rows, cell, hidden, parts) for rows in _directions(call.tensor(slot), directions)]
    if parts == 1:
        return [[rows] for rows in _directions(held, directions)]
    halves = [torch.split(rows, cell.num_gates * hidden, 0) for rows in _directions(held, directions)]
    return [[pair[0], pair[1]] for pair in halves]


def _ordered(rows: Any, cell: Cell, hidden: int, parts: int) -> list[Any]:
    """The rows in equal parts, each with its gates as torch orders them."""
    gates = torch.split(rows, hidden, 0)
    starts = [part * cell.num_gates for part in range(parts)]
    if cell.num_gates == 1:
        return [rows] if parts == 1 else [gates[start] for start in starts]
    return [torch.cat([gates[start + gate] for gate in cell.order]) for start in starts]


def _run_steps(
    call: Call, cell: Cell, x: Any, states: list[Any], functions: list[list[_Activation]]
) -> tuple[Any, Sequence[Any]]:
    parts = []
    by_slot = {slot: _directions(call.tensor(slot), _sizes(call)[0]) for slot in (1, 2, _B, _P) if call.has(slot)}
    for direction, chosen in enumerate(functions):
        size = 2 * cell.num_gates * _sizes(call)[1]
        bias = by_slot[_B][direction] if call.has(_B) else x.new_zeros([size])
        begin = [torch.select(state, 0, direction) for state in states]
        names, alphas, betas = ([getattr(one, key) for one in chosen] for key in ("name", "alpha", "beta"))
        given = [names, alphas, betas, float(call.attribute("clip") or 0.0)]
        reverse = _is_reverse(call) or direction == 1
        common = [x, by_slot[1][direction], by_slot[2][direction], bias, call.tensor(_LENS), *begin]
        if cell is _LSTM:
            peepholes = by_slot[_P][direction] if call.has(_P) else None
            couple = bool(call.attribute("input_forget", 0))
            parts.append(cells.apply(cells.lstm, *common, peepholes, reverse, *given, couple))
        elif cell is _GRU:
            linear = bool(call.attribute("linear_before_reset", 0))
            parts.append(cells.apply(cells.gru, *common, reverse, *given, linear))
        else:
            parts.append(cells.apply(cells.rnn, *common, reverse, *given))
    y = torch.stack([part[0] for part in parts], 2)
    return y, [torch.stack([part[number + 1] for part in parts]) for number in range(len(states))]


def _is_reverse(call: Call) -> bool:
    return str(call.attribute("direction", "forward")) == "reverse"


def _channels(walk: Walk, node: Node) -> None:
    if not walk.is_weight(node.inputs[1]) or not walk.is_weight(node.inputs[2]):
        walk.pin(node, f"the {node.op} '{node.name}' takes its weights from data")
        return
    given = {slot for slot, name in enumerate(node.inputs) if name}
    batch_first = node.attributes.get("layout", 0)
    walk.recur(
        node,
        vectors=sorted(given & {_B, _P}),
        states=[(slot, 1 if batch_first else 0) for slot in sorted(given & {_H0, _C0})],
        places=[(2, 3), (1, 2), (1, 2)] if batch_first else [(1, 3), (0, 2), (0, 2)],
    )


def _rewrite(view: CutView, node: Node) -> Rewrites:
    if "hidden_size" not in node.attributes:
        return {}
    wanted = view.shape_wanted(node.outputs[0])[-1]
    return {"hidden_size": [wanted]} if wanted != node.attributes["hidden_size"] else {}


def _macs(node: Node, shapes: Shapes) -> int:
    x, w, r = (shapes[name] for name in node.inputs[:3])
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


for _cell in (_LSTM, _GRU, _RNN):
    register(
        Operator(
            op=_cell.op,
            versions=(7, 14, 22),
            run=_run(_cell),
            channels=_channels,
            macs=_macs,
            rewrite=_rewrite,
            weights=(1, 2, _B, _P) if _cell.has_memory else (1, 2, _B),
            assembles=True,
        )
    )
