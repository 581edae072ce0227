"""Recurrent cells step by step: the forms that torch's fused functions do not have.

Scriptable, so that what is recorded of them can leave as TorchScript: `apply` writes one call into the recorded graph.
Each function is one direction; `names`, `alphas` and `betas` are its activations, `clip` 0 is none. Where `lens` are
given, states stand still past the end of a sequence, and outputs there are 0.

Shape letters: S steps, B batch, I inputs, H hidden units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, List, Optional, Tuple  # noqa: UP035 - TorchScript reads these

import torch
from torch import Tensor, fx


def apply(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value; for proxies the record of a call of it."""
    tracer = next((argument.tracer for argument in arguments if isinstance(argument, fx.Proxy)), None)
    if tracer is None:
        return function(*arguments)
    return tracer.create_proxy("call_function", function, arguments, {})


def activate(x: Tensor, name: str, alpha: float, beta: float, clip: float) -> Tensor:
    """The ONNX activation of that lower-case name, of what is clipped to `±clip` first."""
    if clip > 0:
        x = torch.clamp(x, -clip, clip)
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "relu":
        return torch.relu(x)
    if name == "leakyrelu":
        return torch.where(x < 0, x * alpha, x)
    if name == "thresholdedrelu":
        return torch.where(x > alpha, x, torch.zeros_like(x))
    if name == "scaledtanh":
        return torch.tanh(x * beta) * alpha
    if name == "hardsigmoid":
        return torch.clamp(x * alpha + beta, 0.0, 1.0)
    if name == "elu":
        return torch.where(x < 0, torch.expm1(x) * alpha, x)
    if name == "softsign":
        return x / (torch.abs(x) + 1)
    if name == "softplus":
        return torch.nn.functional.softplus(x)
    assert name == "affine"
    return x * alpha + beta


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    lens: Optional[Tensor],  # noqa: UP045
    h: Tensor,
    c: Tensor,
    peepholes: Optional[Tensor],  # noqa: UP045
    reverse: bool,
    names: List[str],  # noqa: UP006
    alphas: List[float],  # noqa: UP006
    betas: List[float],  # noqa: UP006
    clip: float,
    couple: bool,
) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """`x` [S, B, I], `w` [4H, I], `r` [4H, H] (gates i, o, f, c), `b` [8H], `peepholes` [3H] (i, o, f).

    `couple`: the forget gate is 1 minus the input gate. Returns outputs [S, B, H] and last states [B, H].
    """
    size, num_steps = r.size(1), x.size(0)
    made = torch.matmul(x, w.t()) + (b[: 4 * size] + b[4 * size :])
    outputs: List[Tensor] = []  # noqa: UP006
    for step in range(num_steps):
        t = num_steps - 1 - step if reverse else step
        i, o, f, g = torch.chunk(made[t] + torch.matmul(h, r.t()), 4, 1)
        if peepholes is not None:
            i, f = i + peepholes[:size] * c, f + peepholes[2 * size :] * c
        i = activate(i, names[0], alphas[0], betas[0], clip)
        f = 1 - i if couple else activate(f, names[0], alphas[0], betas[0], clip)
        new_c = f * c + i * activate(g, names[1], alphas[1], betas[1], clip)
        if peepholes is not None:
            o = o + peepholes[size : 2 * size] * new_c
        o = activate(o, names[0], alphas[0], betas[0], clip)
        new_h = o * activate(new_c, names[2], alphas[2], betas[2], 0.0)
        y = new_h
        if lens is not None:
            alive = torch.unsqueeze(lens > t, 1)
            new_h, new_c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
            y = torch.where(alive, y, torch.zeros_like(y))
        h, c = new_h, new_c
        outputs.append(y)
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), h, c


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    lens: Optional[Tensor],  # noqa: UP045
    h: Tensor,
    reverse: bool,
    names: List[str],  # noqa: UP006
    alphas: List[float],  # noqa: UP006
    betas: List[float],  # noqa: UP006
    clip: float,
    linear_before_reset: bool,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """`x` [S, B, I], `w` [3H, I], `r` [3H, H] (gates z, r, h), `b` [6H]; returns [S, B, H] and [B, H]."""
    size, num_steps = r.size(1), x.size(0)
    made = torch.matmul(x, w.t()) + b[: 3 * size]
    r_gates, r_new, b_gates, b_new = r[: 2 * size], r[2 * size :], b[3 * size : 5 * size], b[5 * size :]
    outputs: List[Tensor] = []  # noqa: UP006
    for step in range(num_steps):
        t = num_steps - 1 - step if reverse else step
        gates = made[t][:, : 2 * size] + torch.matmul(h, r_gates.t()) + b_gates
        z, reset = torch.chunk(activate(gates, names[0], alphas[0], betas[0], clip), 2, 1)
        inner = torch.matmul(h if linear_before_reset else reset * h, r_new.t()) + b_new
        inner = reset * inner if linear_before_reset else inner
        new = activate(made[t][:, 2 * size :] + inner, names[1], alphas[1], betas[1], clip)
        new_h = (1 - z) * new + z * h
        y = new_h
        if lens is not None:
            alive = torch.unsqueeze(lens > t, 1)
            new_h, y = torch.where(alive, new_h, h), torch.where(alive, y, torch.zeros_like(y))
        h = new_h
        outputs.append(y)
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), h


def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor,
    lens: Optional[Tensor],  # noqa: UP045
    h: Tensor,
    reverse: bool,
    names: List[str],  # noqa: UP006
    alphas: List[float],  # noqa: UP006
    betas: List[float],  # noqa: UP006
    clip: float,
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """`x` [S, B, I], `w` [H, I], `r` [H, H], `b` [2H]; returns [S, B, H] and [B, H]."""
    size, num_steps = r.size(1), x.size(0)
    made = torch.matmul(x, w.t()) + (b[:size] + b[size:])
    outputs: List[Tensor] = []  # noqa: UP006
    for step in range(num_steps):
        t = num_steps - 1 - step if reverse else step
        new_h = activate(made[t] + torch.matmul(h, r.t()), names[0], alphas[0], betas[0], clip)
        y = new_h
        if lens is not None:
            alive = torch.unsqueeze(lens > t, 1)
            new_h, y = torch.where(alive, new_h, h), torch.where(alive, y, torch.zeros_like(y))
        h = new_h
        outputs.append(y)
    if reverse:
        outputs.reverse()
    return torch.stack(outputs), h
