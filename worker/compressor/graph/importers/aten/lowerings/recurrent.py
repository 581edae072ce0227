"""LSTM, GRU and RNN, whole layers and single steps.

ONNX orders the gates in another way than torch, and wants directions stacked. The graph puts them in that order from the
parameters as they are, so that every weight stays under its own name. Letters: S steps, B batch, D directions, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from worker.compressor.graph.importers.aten.table import Call, lowers
from worker.compressor.graph.importers.aten.values import Number, Tensor, Unsupported, Value


@dataclass(frozen=True)
class Cell:
    """What tells the operators apart: `runs` are torch's gates in ONNX's order, as (first, last)."""

    op: str
    num_gates: int
    runs: tuple[tuple[int, int], ...]
    activation: str | None = None


_LSTM = Cell("LSTM", 4, ((0, 1), (3, 4), (1, 3)))
_GRU = Cell("GRU", 3, ((1, 2), (0, 1), (2, 3)))
_TANH = Cell("RNN", 1, ((0, 1),), "Tanh")
_RELU = Cell("RNN", 1, ((0, 1),), "Relu")

#: The parameters of one direction: W, R, and either two biases or none.
_Parameters = Sequence[Tensor]


@lowers("lstm.input")
def lstm(
    to: Call, input: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int, dropout: Number,
    train: bool, bidirectional: bool, batch_first: bool,
) -> list[Value]:  # fmt: skip
    """All layers of an LSTM: outputs, last hidden state, last memory."""
    states = [hx[0], hx[1]]
    return _layers(to, _LSTM, input, states, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)


def _of(cell: Cell) -> Callable[..., list[Value]]:
    def lower(
        to: Call, input: Tensor, hx: Tensor, params: list[Tensor], has_biases: bool, num_layers: int, dropout: Number,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> list[Value]:  # fmt: skip
        return _layers(
            to, cell, input, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first
        )

    return lower


lowers("gru.input")(_of(_GRU))
lowers("rnn_tanh.input")(_of(_TANH))
lowers("rnn_relu.input")(_of(_RELU))


def _layers(
    to: Call, cell: Cell, input: Tensor, states: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int,
    dropout: Number, train: bool, bidirectional: bool, batch_first: bool,
) -> list[Value]:  # fmt: skip
    directions, width = 2 if bidirectional else 1, 4 if has_biases else 2
    if len(params) != num_layers * directions * width:
        raise Unsupported("projects its hidden state to another width")
    if train and dropout and num_layers > 1:
        raise Unsupported("is random, because it drops out; call eval() before saving")
    alone = input.rank == 2
    x = to.emit("Unsqueeze", input, [1]) if alone else input.value
    if batch_first and not alone:
        x = to.emit("Transpose", x, perm=[1, 0, 2])
    starts = [_starts(to, state, num_layers, directions, alone) for state in states]
    lasts: list[list[ir.Value]] = [[] for _ in states]
    for layer in range(num_layers):
        first = layer * directions * width
        parts = [params[first + d * width : first + (d + 1) * width] for d in range(directions)]
        made = _layer(to, cell, x, parts, [start[layer] for start in starts])
        for last, state in zip(lasts, made[1:], strict=True):
            last.append(state)
        x = _joined(to, made[0], directions)
    if batch_first and not alone:
        x = to.emit("Transpose", x, perm=[1, 0, 2])
    outcome = [x, *(last[0] if num_layers == 1 else to.emit("Concat", *last, axis=0) for last in lasts)]
    return [to.emit("Squeeze", value, [1]) for value in outcome] if alone else outcome


def _joined(to: Call, y: ir.Value, directions: int) -> ir.Value:
    """`[S, D, B, H]` to `[S, B, D * H]`."""
    if directions == 1:
        return to.emit("Squeeze", y, [1])
    return to.emit("Reshape", to.emit("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])


def _starts(to: Call, state: Tensor, num_layers: int, directions: int, alone: bool) -> list[ir.Value | None]:
    """The initial state of each layer; None where it is 0."""
    if state.is_zero:
        return [None] * num_layers
    whole = to.emit("Unsqueeze", state, [1]) if alone else state.value
    if num_layers == 1:
        return [whole]
    return list(to.emit("Split", whole, [directions] * num_layers, axis=0, outputs=num_layers))


def _layer(
    to: Call, cell: Cell, x: ir.Value, parts: Sequence[_Parameters], starts: Sequence[ir.Value | None]
) -> tuple[ir.Value, ...]:
    """One layer: outputs `[S, D, B, H]` and the last states `[D, B, H]`."""
    hidden = parts[0][1].size(1)
    if hidden is None:
        raise Unsupported("has a number of hidden units that is not fixed")
    weights = [_stacked(to, [_gates(to, cell, part[slot], hidden) for part in parts]) for slot in (0, 1)]
    biases = [
        to.emit("Concat", *(_gates(to, cell, bias, hidden) for bias in part[2:]), axis=0) for part in parts if part[2:]
    ]
    activations = None if cell.activation is None else [cell.activation] * len(parts)
    return to.emit(
        cell.op, x, *weights, _stacked(to, biases) if biases else None, None, *starts, hidden_size=hidden,
        direction="bidirectional" if len(parts) == 2 else "forward", activations=activations,
        linear_before_reset=1 if cell is _GRU else None, outputs=1 + len(starts),
    )  # fmt: skip


def _gates(to: Call, cell: Cell, weight: Tensor, hidden: int) -> ir.Value:
    if len(cell.runs) == 1:
        return weight.value
    parts = [to.emit("Slice", weight, [first * hidden], [last * hidden], [0]) for first, last in cell.runs]
    return to.emit("Concat", *parts, axis=0)


def _stacked(to: Call, parts: Sequence[ir.Value]) -> ir.Value:
    rows = [to.emit("Unsqueeze", part, [0]) for part in parts]
    return rows[0] if len(rows) == 1 else to.emit("Concat", *rows, axis=0)


@lowers("lstm_cell")
def lstm_cell(
    to: Call, input: Tensor, hx: list[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> list[Value]:  # fmt: skip
    """One step of an LSTM: hidden state and memory."""
    return _step(to, _LSTM, input, [hx[0], hx[1]], w_ih, w_hh, b_ih, b_hh)


def _step_of(cell: Cell) -> Callable[..., Value]:
    def lower(
        to: Call, input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Value:  # fmt: skip
        return _step(to, cell, input, [hx], w_ih, w_hh, b_ih, b_hh)[0]

    return lower


lowers("gru_cell")(_step_of(_GRU))
lowers("rnn_tanh_cell")(_step_of(_TANH))
lowers("rnn_relu_cell")(_step_of(_RELU))


def _step(
    to: Call, cell: Cell, input: Tensor, states: list[Tensor], w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> list[Value]:  # fmt: skip
    if input.rank != 2:
        raise Unsupported("takes a step of a single sample without a batch")
    part = [weight for weight in (w_ih, w_hh, b_ih, b_hh) if weight is not None]
    starts = [None if state.is_zero else to.emit("Unsqueeze", state, [0]) for state in states]
    made = _layer(to, cell, to.emit("Unsqueeze", input, [0]), [part], starts)
    return [to.emit("Squeeze", state, [0]) for state in made[1:]]
