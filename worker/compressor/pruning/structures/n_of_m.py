"""n of every m weights that are summed up: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (arXiv 2104.08378)."""

from __future__ import annotations

import numpy as np

from worker.compressor.errors import NothingRemoved, TargetUnreachable
from worker.compressor.graph.counts import count
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.matrices import Matrix, matrices_of
from worker.compressor.pruning.structures import STRUCTURES, Masking, Masks


@STRUCTURES.register
class NOfM(Masking):
    """Of every m consecutive weights along the input axis of a matrix the n with the highest scores stay.

    The input axis is 1 of Conv and of Gemm with transB, 0 of MatMul; a layer whose inputs do not divide by m stays whole.
    """

    name = "n:m"
    help = "n of every m consecutive inputs of a layer stay (as `2:4`), which some accelerators run faster"

    def choose(self, num_zeros: int | None, rng: np.random.Generator) -> Masks:
        """See `Masking.choose`."""
        n, m = map(int, self.prune.structure.split(":"))
        matrices, kept_because = matrices_of(self.network, self.prune)
        criterion, evidence, kept = CRITERIA.get(self.prune.criterion)(), self.look([]), dict[str, np.ndarray]()
        for matrix, stream in zip(matrices, rng.spawn(len(matrices)), strict=True):
            array = self.network.tensors[matrix.tensor]
            if array.shape[matrix.inputs] % m:
                kept_because[matrix.layer] = f"its {array.shape[matrix.inputs]} inputs do not divide by {m}"
                continue
            kept[matrix.tensor] = best_of(criterion.weight_scores(matrix, evidence, stream), matrix, n, m)
        if not any((self.network.tensors[name][~flags] != 0).any() for name, flags in kept.items()):
            raise NothingRemoved(f"no layer has inputs that divide by {m}, or all are {self.prune.structure} already")
        if num_zeros is not None:
            self._check(num_zeros, kept)
        return Masks(kept, kept_because)

    def _check(self, num_zeros: int, kept: dict[str, np.ndarray]) -> None:
        counts = count(self.network, self.shapes)
        gone = sum(int((self.network.tensors[name][~flags] != 0).sum()) for name, flags in kept.items())
        best = counts.num_params - counts.nonzero_params + gone
        if best < num_zeros:
            detail = f"sparsity: {self.prune.structure} makes {best} of {counts.num_params} parameters 0, {num_zeros} are asked"
            raise TargetUnreachable(detail, asked=num_zeros, best=best)


def best_of(scores: np.ndarray, matrix: Matrix, n: int, m: int) -> np.ndarray:
    """True for the n highest scores of every m along the input axis; of equal ones the first stay."""
    last = np.moveaxis(scores, matrix.inputs, -1)
    groups = last.reshape(*last.shape[:-1], -1, m)
    rank = np.argsort(np.argsort(-groups, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.ascontiguousarray(np.moveaxis((rank < n).reshape(last.shape), -1, matrix.inputs))
