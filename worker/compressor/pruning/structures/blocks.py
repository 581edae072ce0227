"""Tiles of weights: Gray et al. 2017, GPU Kernels for Block-Sparse Weights; Lagunas et al. 2021, Block Pruning For Faster
Transformers (arXiv 2109.04838).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.compressor.pruning.matrices import Matrix
from worker.compressor.pruning.structures import STRUCTURES
from worker.compressor.pruning.structures.weights import Weights


@STRUCTURES.register
class Blocks(Weights):
    """Tiles of `block` (outputs, inputs) become 0 as a whole, those of the lowest mean score; at the edges they are smaller.

    A kernel has a matrix of its own at each of its positions. As many become 0 as `sparsity` asks for, and less than a tile more.
    """

    name = "blocks"
    help = "tiles of a layer's weights become zero (`block: [outputs, inputs]`), which kernels for block-sparse matrices run faster"

    def _pooled(self, numbers: np.ndarray, matrix: Matrix) -> np.ndarray:
        last = np.moveaxis(numbers, (matrix.outputs, matrix.inputs), (-2, -1))
        sums: np.ndarray = last.astype(_summed(numbers))
        for axis, length in zip((-2, -1), self._tile, strict=True):
            sums = np.add.reduceat(sums, np.arange(0, sums.shape[axis], length), axis=axis)
        return sums

    def _spread(self, flags: np.ndarray, matrix: Matrix) -> np.ndarray:
        shape, axes = self.network.tensors[matrix.tensor].shape, (matrix.outputs, matrix.inputs)
        rows, columns = (np.arange(shape[axis]) // length for axis, length in zip(axes, self._tile, strict=True))
        return np.ascontiguousarray(np.moveaxis(flags[..., rows[:, None], columns], (-2, -1), axes))

    @property
    def _tile(self) -> Sequence[int]:
        assert self.prune.block is not None
        return self.prune.block


def _summed(numbers: np.ndarray) -> type:
    """Flags are counted, scores are added up."""
    return np.float64 if numbers.dtype.kind == "f" else np.int64
