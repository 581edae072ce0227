"""Where the search for inputs begins: smooth noise, of the size that the network's statistics fit best.

Shapes: N samples; C channels; then positions, if there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: Standard deviation of the smoothing, in positions: neighbours in pictures and sounds are alike.
SMOOTHING = 2.0
#: Networks take prepared values about 1 wide, shares of 1, or bytes; values are around 0 or all positive.
SCALES, OFFSETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), (0.0, 1.0, 2.0)


def smooth_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Normal noise, smoothed along every axis of positions; each sample has mean 0 and variance 1."""
    noise = torch.randn(tuple(shape), generator=generator)
    for axis in range(2, noise.ndim):
        noise = _smoothed(noise, axis)
    rows = noise.reshape(len(noise), -1)
    if noise.ndim > 2 and rows.shape[1] > 1:
        rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True).clamp_min(1e-6)
    return rows.reshape(noise.shape)


def fitting_size(far: Callable[[float, float], float]) -> tuple[float, float]:
    """The scale and offset for which `far(scale, offset)`, a distance, is the least."""
    sizes = [(scale, offset * scale) for scale in SCALES for offset in OFFSETS]
    return min(sizes, key=lambda size: far(*size))


def _smoothed(noise: Tensor, axis: int) -> Tensor:
    """A Gaussian average along one axis."""
    reach = int(3 * SMOOTHING)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * SMOOTHING**2))
    lines = noise.movedim(axis, -1)
    flat = lines.reshape(-1, 1, lines.shape[-1])
    averaged = F.conv1d(F.pad(flat, (reach, reach), mode="replicate"), (kernel / kernel.sum())[None, None])
    return averaged.reshape(lines.shape).movedim(-1, axis)
