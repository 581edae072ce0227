"""Fitting one layer of the cut network to what should come out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.compressor.pruning.reconstruction.layers import LinearLayer
from worker.compressor.pruning.reconstruction.least_squares import Gram, solve_wide
from worker.compressor.pruning.reconstruction.rectified import PENALTIES, auxiliary
from worker.compressor.pruning.reconstruction.tails import Tail, Weights

# Beyond this width a system of rows is smaller than one of inputs.
MAX_INPUTS = 2048
MAX_WIDE_ROWS = 2048
PIECE_ELEMENTS = 16 << 20
KEPT_ELEMENTS = 64 << 20
GRAM_OPERATIONS = 4e10


@dataclass(frozen=True)
class Aim:
    """What should come out: `wanted`, of which another branch gives `branch`; below zero it does not count if rectified."""

    wanted: Tensor
    branch: Tensor | None = None
    is_rectified: bool = False

    def own(self, piece: slice) -> Tensor:
        """The layer's own part of it."""
        return self.wanted[piece] if self.branch is None else self.wanted[piece] - self.branch[piece]


def fit(tail: Tail, x: Tensor, aim: Aim, mask: Tensor | None = None) -> Weights:
    """The tensors with which the layer (and its BatchNorm) gives `aim` from `x` as nearly as it can.

    Where `mask` `[G, D, O]` is False the map stays 0.
    """
    layer, start = tail.layer, tail.start()
    rows_per_sample = max(1, aim.wanted[0].numel() // aim.wanted.shape[layer.channel_axis])
    if layer.num_inputs > MAX_INPUTS:
        some = slice(0, max(1, MAX_WIDE_ROWS // rows_per_sample))
        solved, bias = solve_wide(
            layer.unfold(x[some]), layer.rows(aim.own(some)), start, with_bias=tail.has_bias, mask=mask
        )
        return tail.weights(solved, bias, None)
    pieces = _Pieces(layer, x, rows_per_sample, keep=aim.is_rectified)
    gram = Gram(*start.shape)
    for piece, inputs in pieces:
        gram.add(inputs, layer.rows(aim.own(piece)))
    solved, bias = gram.solve(start, with_bias=tail.has_bias, mask=mask)
    for penalty in PENALTIES if aim.is_rectified else ():
        again = gram.with_outputs()
        for piece, inputs in pieces:
            again.add_outputs(inputs, _auxiliary_outputs(layer, inputs, aim, piece, (solved, bias), penalty))
        solved, bias = again.solve(start, with_bias=tail.has_bias, mask=mask)
    return tail.weights(solved, bias, gram)


def _auxiliary_outputs(
    layer: LinearLayer, inputs: Tensor, aim: Aim, piece: slice, fitted: tuple[Tensor, Tensor | None], penalty: float
) -> Tensor:
    """Outputs that a ReLU makes the same of, nearer to what the layer can give."""
    solved, bias = fitted
    given = torch.bmm(inputs, solved.float()) + (0.0 if bias is None else bias.float().unsqueeze(1))
    beside = 0.0 if aim.branch is None else layer.rows(aim.branch[piece])
    return auxiliary(layer.rows(aim.wanted[piece]), given + beside, penalty) - beside


class _Pieces:
    """Slices over the samples with their unfolded inputs, short enough to hold; `keep` unfolds them once if they fit."""

    def __init__(self, layer: LinearLayer, x: Tensor, rows_per_sample: int, *, keep: bool) -> None:
        # Beyond so many rows another one changes only the time.
        enough = GRAM_OPERATIONS / (layer.num_inputs**2 * layer.num_groups * rows_per_sample)
        num_samples = min(len(x), max(32, int(enough)))
        per_sample = rows_per_sample * layer.num_groups * layer.num_inputs
        step = max(1, PIECE_ELEMENTS // per_sample)
        self._layer, self._x = layer, x
        self._slices = [slice(at, min(at + step, num_samples)) for at in range(0, num_samples, step)]
        self._kept: list[Tensor] | None = [] if keep and num_samples * per_sample <= KEPT_ELEMENTS else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self._kept:
            yield from zip(self._slices, self._kept, strict=True)
            return
        for piece in self._slices:
            inputs = self._layer.unfold(self._x[piece])
            if self._kept is not None:
                self._kept.append(inputs)
            yield piece, inputs
