"""Ridge regression towards the weights that are there, from streamed Gram matrices.

Shapes: G groups, R rows (samples times positions), D inputs of one output (channels times kernel), O outputs of a group.
Solves `min_W Σ_r |y_r - W'u_r|² + λ |W - W0|²`, so that directions the samples say nothing about keep their weights:
`W = W0 + (U'U + λI)⁻¹ U'(Y - U W0)`, λ a share of the mean diagonal. (ThiNet and He et al. 2017 for channels; Kwon et al.
2022, arXiv 2204.09656, for masks.)
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

RIDGE = 0.01


class Gram:
    """`U'U`, `U'Y` and the sums of rows, gathered piece by piece in float64; memory G · D · (D + O)."""

    def __init__(self, groups: int, num_inputs: int, num_outputs: int) -> None:
        self.inner = torch.zeros(groups, num_inputs, num_inputs, dtype=torch.float64)
        self.outer = torch.zeros(groups, num_inputs, num_outputs, dtype=torch.float64)
        self.input_sum = torch.zeros(groups, num_inputs, dtype=torch.float64)
        self.output_sum = torch.zeros(groups, num_outputs, dtype=torch.float64)
        self.num_rows = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """One piece: `inputs` `[G, R, D]`, `outputs` `[G, R, O]`, float32 (a piece is short enough for its sums)."""
        turned = inputs.transpose(1, 2)
        self.inner += torch.bmm(turned, inputs).double()
        self.outer += torch.bmm(turned, outputs).double()
        self.input_sum += inputs.sum(1, dtype=torch.float64)
        self.output_sum += outputs.sum(1, dtype=torch.float64)
        self.num_rows += inputs.shape[1]

    def with_outputs(self) -> Gram:
        """The same inputs, with room for other outputs: `add_outputs` must then see the same rows."""
        other = copy(self)
        other.outer, other.output_sum = torch.zeros_like(self.outer), torch.zeros_like(self.output_sum)
        return other

    def add_outputs(self, inputs: Tensor, outputs: Tensor) -> None:
        """One piece of new outputs for inputs that were added before."""
        self.outer += torch.bmm(inputs.transpose(1, 2), outputs).double()
        self.output_sum += outputs.sum(1, dtype=torch.float64)

    def statistics(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each output of a map `[G, D, O]` over the rows, `[G · O]` each."""
        weight, mean_in = weight.double(), (self.input_sum / self.num_rows).unsqueeze(1)
        mean = (mean_in @ weight).reshape(-1)
        squares = ((self.inner @ weight) * weight).sum(1).reshape(-1) / self.num_rows
        return mean, (squares - mean.square()).clamp_min(0.0)

    def solve(
        self, weight: Tensor, *, with_bias: bool, mask: Tensor | None = None, ridge: float = RIDGE
    ) -> tuple[Tensor, Tensor | None]:
        """New weights `[G, D, O]` near `weight`, and biases `[G, O]`, which no ridge holds back; float64.

        Where `mask` `[G, D, O]` is False, `weight` is 0 and stays so.
        """
        inner, outer = self.inner, self.outer
        if with_bias:
            # A bias that is free is the same as a regression of centred values.
            mean_in, mean_out = self.input_sum / self.num_rows, self.output_sum / self.num_rows
            inner = inner - self.num_rows * mean_in.unsqueeze(2) * mean_in.unsqueeze(1)
            outer = outer - self.num_rows * mean_in.unsqueeze(2) * mean_out.unsqueeze(1)
        start = weight.double()
        diagonal = inner.diagonal(dim1=1, dim2=2).mean(1)
        damping = (ridge * diagonal).clamp_min(1e-12)[:, None, None]
        if mask is None:
            factor, failed = torch.linalg.cholesky_ex(inner + damping * torch.eye(inner.shape[1], dtype=torch.float64))
            change = torch.cholesky_solve(outer - inner @ start, factor)
        else:
            change, failed = (
                masked_change(lambda w: inner @ w + damping * w, outer - inner @ start, mask),
                torch.zeros(1),
            )
        # A group whose system cannot be factored (inputs that are not finite) keeps its weights.
        sound = (failed == 0) & torch.isfinite(change).all(2).all(1)
        solved = torch.where(sound[:, None, None], start + change, start)
        if not with_bias:
            return solved, None
        return solved, mean_out - (mean_in.unsqueeze(1) @ solved).squeeze(1)


def solve_wide(
    inputs: Tensor,
    outputs: Tensor,
    weight: Tensor,
    *,
    with_bias: bool,
    mask: Tensor | None = None,
    ridge: float = RIDGE,
) -> tuple[Tensor, Tensor | None]:
    """The same solution where D exceeds R, from the R × R matrix: `W = W0 + U'(UU' + λI)⁻¹ (Y - U W0)`.

    `inputs` `[G, R, D]`, `outputs` `[G, R, O]`, `weight` `[G, D, O]`; returns weights, and biases `[G, O]` if asked.
    """
    start, mean_in, mean_out = weight.float(), inputs.mean(1, keepdim=True), outputs.mean(1, keepdim=True)
    if with_bias:
        inputs, outputs = inputs - mean_in, outputs - mean_out
    if mask is not None:
        turned = inputs.transpose(1, 2)
        damp = (ridge * inputs.square().sum((1, 2)) / inputs.shape[2]).clamp_min(1e-12)[:, None, None]
        change = masked_change(
            lambda w: torch.bmm(turned, torch.bmm(inputs, w)) + damp * w,
            torch.bmm(turned, outputs - torch.bmm(inputs, start)),
            mask,
        )
        solved = torch.where(torch.isfinite(change).all(2).all(1)[:, None, None], start + change, start)
        return solved, (mean_out - torch.bmm(mean_in, solved)).squeeze(1) if with_bias else None
    kernel = torch.bmm(inputs, inputs.transpose(1, 2)).double()
    damping = ridge * kernel.diagonal(dim1=1, dim2=2).sum(1) / inputs.shape[2]
    kernel = kernel + damping.clamp_min(1e-12)[:, None, None] * torch.eye(kernel.shape[1], dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(kernel)
    dual = torch.cholesky_solve((outputs - torch.bmm(inputs, start)).double(), factor)
    change = torch.bmm(inputs.transpose(1, 2), dual.float())
    sound = (failed == 0) & torch.isfinite(change).all(2).all(1)
    solved = torch.where(sound[:, None, None], start + change, start)
    return solved, (mean_out - torch.bmm(mean_in, solved)).squeeze(1) if with_bias else None


CONJUGATE_STEPS = 60


def masked_change(apply: Callable[[Tensor], Tensor], wanted: Tensor, mask: Tensor) -> Tensor:
    """The `[G, D, O]` solution of `apply(w) = wanted` on the support of each column of `mask`, 0 elsewhere.

    Each output has a support, and so a system, of its own; conjugate gradients (Hestenes and Stiefel 1952) solve all side
    by side with one product a step. `apply` is symmetric and positive.
    """
    solution = torch.zeros_like(wanted)
    residual = wanted * mask
    direction, size = residual, residual.square().sum(1, keepdim=True)
    enough, least = 1e-12 * size, torch.finfo(size.dtype).tiny
    for _ in range(CONJUGATE_STEPS):
        if bool((size <= enough).all()):
            break
        image = apply(direction) * mask
        step = size / (direction * image).sum(1, keepdim=True).clamp_min(least)
        step = torch.where(size <= enough, 0.0, step)
        solution = solution + step * direction
        residual = residual - step * image
        previous, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(previous > 0, size / previous.clamp_min(least), 0.0) * direction
    return solution
