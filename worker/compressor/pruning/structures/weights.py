"""Single weights, wherever they lie: Han et al. 2015, Learning both Weights and Connections (arXiv 1506.02626)."""

from __future__ import annotations

import numpy as np

from worker.compressor.errors import NothingRemoved, TargetUnreachable
from worker.compressor.graph.counts import count
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.matrices import Matrix, matrices_of
from worker.compressor.pruning.structures import STRUCTURES, Masking, Masks

#: The share of a matrix that stays in any case while the target can be met so: a layer of zeros passes nothing on.
FLOOR = 0.02


@STRUCTURES.register
class Weights(Masking):
    """The weights of the lowest scores become 0: the lowest of all matrices (`global`), or the same share of each."""

    name = "weights"
    help = "single weights become zero; the shapes stay, so that plain runtimes gain no speed"

    def choose(self, num_zeros: int | None, rng: np.random.Generator) -> Masks:
        """See `Masking.choose`."""
        assert num_zeros is not None
        matrices, kept_because = matrices_of(self.network, self.prune)
        arrays = [self.network.tensors[matrix.tensor] for matrix in matrices]
        size, zeros = sum(array.size for array in arrays), sum(int((array == 0).sum()) for array in arrays)
        counts = count(self.network, self.shapes)
        elsewhere = counts.num_params - counts.nonzero_params - zeros
        wanted = num_zeros - elsewhere
        if wanted > size:
            detail = f"sparsity: only {size} weights can become 0, and {wanted} would have to"
            raise TargetUnreachable(detail, asked=num_zeros, best=elsewhere + size)
        if wanted <= zeros:
            raise NothingRemoved("so many weights are 0 already")
        scores = self._scores(matrices, rng)
        cut = _lowest_of_all if self.prune.scope == "global" else _lowest_of_each
        kept = {matrix.tensor: flags for matrix, flags in zip(matrices, cut(scores, wanted), strict=True)}
        return Masks(kept, kept_because)

    def _scores(self, matrices: list[Matrix], rng: np.random.Generator) -> list[np.ndarray]:
        criterion, evidence = CRITERIA.get(self.prune.criterion)(), self.look([])
        found = []
        for matrix, stream in zip(matrices, rng.spawn(len(matrices)), strict=True):
            scores = criterion.weight_scores(matrix, evidence, stream)
            mean = 1.0 if criterion.is_comparable else float(scores.mean())
            # What is 0 already goes first, whatever a criterion says of it.
            found.append(np.where(self.network.tensors[matrix.tensor] == 0, -1.0, scores / (mean or 1.0)))
        return found


def _lowest_of_all(scores: list[np.ndarray], number: int) -> list[np.ndarray]:
    protected = [_protected(matrix) for matrix in scores]
    if number > sum(int((~flags).sum()) for flags in protected):
        protected = [np.zeros(matrix.shape, bool) for matrix in scores]
    flat = np.concatenate([np.where(p, np.inf, s).reshape(-1) for s, p in zip(scores, protected, strict=True)])
    kept = np.ones(len(flat), bool)
    kept[np.argsort(flat, kind="stable")[:number]] = False
    ends = np.cumsum([matrix.size for matrix in scores])[:-1]
    return [part.reshape(matrix.shape) for part, matrix in zip(np.split(kept, ends), scores, strict=True)]


def _protected(scores: np.ndarray) -> np.ndarray:
    flat = np.zeros(scores.size, bool)
    flat[np.argsort(scores, axis=None, kind="stable")[scores.size - max(1, int(FLOOR * scores.size)) :]] = True
    return flat.reshape(scores.shape)


def _lowest_of_each(scores: list[np.ndarray], number: int) -> list[np.ndarray]:
    total, kept, left = sum(matrix.size for matrix in scores), [], number
    for matrix in scores:
        share = -(-left * matrix.size // total)  # rounded up: the last matrix makes up for it
        flags = np.ones(matrix.size, bool)
        flags[np.argsort(matrix, axis=None, kind="stable")[:share]] = False
        kept.append(flags.reshape(matrix.shape))
        total, left = total - matrix.size, left - share
    return kept
