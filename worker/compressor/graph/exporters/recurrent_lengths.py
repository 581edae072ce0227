"""Recurrent layers of any length for `torch.export`.

Torch works out the sizes behind LSTM, GRU and RNN by computing them step by step, and so fixes the length of the sequence
to the example's. What it records is the whole layer, so the sizes are all that is needed from that computation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

_STEP_BY_STEP = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextmanager
def free_recurrent_lengths() -> Iterator[None]:
    """While this holds, recurrent layers have outputs of the right sizes and no values: for tracing alone."""
    operators: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.lstm.input: _sizes_of_lstm,
        torch.ops.aten.gru.input: _sizes_of_rnn,
        torch.ops.aten.rnn_tanh.input: _sizes_of_rnn,
        torch.ops.aten.rnn_relu.input: _sizes_of_rnn,
    }
    kept = {operator: dict(operator.py_kernels) for operator in operators}
    try:
        for operator, sizes in operators.items():
            operator.py_kernels.update(dict.fromkeys(_STEP_BY_STEP, sizes))
            operator._dispatch_cache.clear()
        yield
    finally:
        for operator, kernels in kept.items():
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()


def _sizes_of_lstm(x: Tensor, state: list[Tensor], *settings: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = state
    output, last = _sizes_of_rnn(x, hidden, *settings, **named)
    return output, last, cell.new_empty(cell.size())


def _sizes_of_rnn(
    x: Tensor,
    hidden: Tensor,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    width = hidden.size(-1) * (2 if bidirectional else 1)
    return x.new_empty(x.size(0), x.size(1), width), hidden.new_empty(hidden.size())
