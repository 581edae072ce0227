"""Group lasso: Yuan and Lin 2006; Wen et al. 2016, Structured Sparsity Learning (arXiv 1608.03665); over coupled groups
Fang et al. 2023, DepGraph (arXiv 2301.12900).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from worker.compressor.graph.channels.grouping import Slice
from worker.compressor.pruning.combining import pieces
from worker.compressor.pruning.penalties import PENALTIES, Penalty, Trainee

_LEAST = 1e-12  # a root has no slope at 0


@PENALTIES.register
class GroupLasso(Penalty):
    """`Σ_g Σ_u sqrt(Σ w²)` over the weights that make or read unit u of group g."""

    name = "group_lasso"
    help = "norm of each channel's weights in all layers that make or read it, summed up: whole channels become small"

    def of(self, trainee: Trainee) -> Callable[[], Tensor]:
        """See `Penalty.of`."""
        parameters = dict(trainee.parameters())
        groups = [
            (
                group.num_units,
                [
                    (parameters[part.tensor], part)
                    for part in group.slices
                    if part.tensor in parameters and parameters[part.tensor].ndim > 1 and part.role != "follows"
                ],
            )
            for group in trainee.groups
        ]

        def penalty() -> Tensor:
            norms = [_squares(parts, num_units).clamp_min(_LEAST).sqrt().sum() for num_units, parts in groups if parts]
            return torch.stack(norms).sum()

        return penalty


def _squares(parts: list[tuple[nn.Parameter, Slice]], num_units: int) -> Tensor:
    """For each unit the sum of squares of its weights, `[U]`."""
    total = torch.zeros(num_units + 1, device=parts[0][0].device)  # the last place is for what is of no unit
    for parameter, part in parts:
        for row, piece in pieces(part, parameter.float().square()):
            others = [other for other in range(piece.ndim) if other != part.axis]
            places = torch.from_numpy(row % (num_units + 1)).to(total.device)
            total = total.index_add(0, places, piece.sum(others))
    return total[:-1]
