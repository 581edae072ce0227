"""Single weights, wherever they lie: Han et al. 2015, Learning both Weights and Connections (arXiv 1506.02626)."""

from __future__ import annotations

import numpy as np

from worker.compressor.errors import NothingRemoved, TargetUnreachable
from worker.compressor.graph.counts import count
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.lowest import Candidates, lowest_of_all, lowest_of_each
from worker.compressor.pruning.matrices import Matrix, matrices_of
from worker.compressor.pruning.structures import STRUCTURES, Masking, Masks


@STRUCTURES.register
class Weights(Masking):
    """The weights of the lowest scores become 0: the lowest of all matrices (`global`), or the same share of each."""

    name = "weights"
    help = "single weights become zero; the shapes stay, so that plain runtimes gain no speed"

    def choose(self, num_zeros: int | None, rng: np.random.Generator) -> Masks:
        """See `Masking.choose`."""
        assert num_zeros is not None
        matrices, kept_because = matrices_of(self.network, self.prune)
        zeros = sum(int((self.network.tensors[matrix.tensor] == 0).sum()) for matrix in matrices)
        counts = count(self.network, self.shapes)
        elsewhere = counts.num_params - counts.nonzero_params - zeros
        wanted = num_zeros - elsewhere
        if wanted <= zeros:
            raise NothingRemoved("so many weights are 0 already")
        candidates = self._candidates(matrices, rng)
        most = sum(matrix.num_candidates for matrix in candidates)
        if wanted > most:
            detail = f"sparsity: only {most} weights can become 0, and {wanted} would have to"
            raise TargetUnreachable(detail, asked=num_zeros, best=elsewhere + most)
        cut = lowest_of_all if self.prune.scope == "global" else lowest_of_each
        flags = cut(candidates, wanted)
        return Masks({m.tensor: self._spread(f, m) for m, f in zip(matrices, flags, strict=True)}, kept_because)

    def _pooled(self, numbers: np.ndarray, matrix: Matrix) -> np.ndarray:
        """Sums over the weights that go together; here each goes by itself."""
        return numbers

    def _spread(self, flags: np.ndarray, matrix: Matrix) -> np.ndarray:
        """What is said of weights that go together, for each of them, in the matrix's shape."""
        return flags

    def _candidates(self, matrices: list[Matrix], rng: np.random.Generator) -> list[Candidates]:
        criterion, evidence = CRITERIA.get(self.prune.criterion)(), self.look([])
        found = []
        for matrix, stream in zip(matrices, rng.spawn(len(matrices)), strict=True):
            scores = criterion.weight_scores(matrix, evidence, stream)
            mean = 1.0 if criterion.is_comparable else float(scores.mean())
            left = self.network.tensors[matrix.tensor] != 0
            # What is 0 already costs nothing, whatever a criterion says of it.
            scores = self._pooled(np.where(left, scores / (mean or 1.0), 0.0), matrix)
            sizes = self._pooled(np.ones(left.shape, np.int32), matrix)
            found.append(Candidates(scores / sizes, self._pooled(left, matrix), left.size, self.prune.floor))
        return found
