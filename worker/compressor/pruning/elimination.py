"""Units of a group that go one after the other, each time the one that the layers behind it can do without most easily.

Of a layer with inputs u, `H = U'U` and weights W, refitted to what is left of its inputs: without the inputs S it loses
`tr(W_S' ((H⁻¹)_SS)⁻¹ W_S)`, and the inverse and the weights for what is left follow by elimination of S (Hassibi and Stork
1993, Optimal Brain Surgeon; of structures Kurtic et al. 2023, ZipLM, arXiv 2302.04089). Where it stays as it is, it loses
`tr(W_S' H_SS W_S)` (Luo et al. 2017, ThiNet, arXiv 1707.06342). What a unit costs is so known with those gone that went
before it: of two that say the same a refit can spare each, but not both; without one, two go together that cancel out.

Shapes: P inputs that belong to the group, O outputs, U units of the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

#: A group is taken apart in at most so many rounds; wider ones lose several units at once.
MOST_ROUNDS = 64
_GONE = -1


class Reader(ABC):
    """A layer that reads units of a group: `units` `[P]` says whose each of its inputs is."""

    def __init__(self, units: np.ndarray) -> None:
        self._units = units

    def reads(self, num_units: int) -> np.ndarray:
        """Whether it reads each unit, `[U]`."""
        return np.isin(np.arange(num_units), self._units)

    @abstractmethod
    def costs(self, num_units: int) -> np.ndarray:
        """What the layer loses more without each unit, beside those that are gone, `[U]`; 0 for those it does not read."""

    @abstractmethod
    def eliminate(self, units: np.ndarray) -> None:
        """Go on without these units."""


class RefittedReader(Reader):
    """One that is refitted to what is left: `inverse` of its damped `H`, and `weight`, scaled to outputs of energy 1.

    `inverse` `[P, P]` and `weight` `[P, O]` are float64; `units` `[P]` says whose each input is. All three are taken over
    and change.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, units: np.ndarray) -> None:
        super().__init__(units)
        self._inverse, self._weight = inverse, weight

    def costs(self, num_units: int) -> np.ndarray:
        """See `Reader.costs`."""
        found = np.zeros(num_units)
        for units, where in self._inputs():
            blocks = self._inverse[where.unsqueeze(2), where.unsqueeze(1)]
            weights = self._weight[where]
            # A trace of a product of small squares: solving for every output takes longer.
            products = torch.bmm(weights, weights.transpose(1, 2))
            found[units] = (torch.linalg.inv(blocks) * products).sum((1, 2)).numpy()
        return found

    def eliminate(self, units: np.ndarray) -> None:
        """See `Reader.eliminate`."""
        gone = np.isin(self._units, units)
        if not gone.any():
            return
        there = torch.from_numpy(np.flatnonzero(gone))
        across = self._inverse[:, there]
        factor = torch.linalg.cholesky(across[there])
        half = torch.linalg.solve_triangular(factor, across.T, upper=False)
        self._weight -= half.T @ torch.linalg.solve_triangular(factor, self._weight[there], upper=False)
        self._inverse.addmm_(half.T, half, alpha=-1)
        self._units[gone] = _GONE
        # The rows of what is gone are near 0 and nobody's: copying the rest each time takes longer than carrying them along.
        left = np.flatnonzero(self._units != _GONE)
        if 2 * len(left) < len(self._units):
            rows = torch.from_numpy(left)
            self._inverse, self._weight = self._inverse[rows][:, rows], self._weight[rows]
            self._units = self._units[left]

    def _inputs(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Units with equally many inputs `[N]`, and where these are `[N, inputs]`."""
        order = np.argsort(self._units, kind="stable")
        units, starts, counts = np.unique(self._units[order], return_index=True, return_counts=True)
        for count in np.unique(counts[units != _GONE]):
            alike = (counts == count) & (units != _GONE)
            yield units[alike], torch.from_numpy(order[starts[alike][:, None] + np.arange(count)])


class FixedReader(Reader):
    """One that stays as it is: its `inner`, `H`, `[P, P]`, and `weight` `[P, O]`, scaled to outputs of energy 1, in float64;
    `units` `[P]` says whose each input is.
    """

    def __init__(self, inner: Tensor, weight: Tensor, units: np.ndarray, num_units: int) -> None:
        super().__init__(units)
        owner = torch.from_numpy(units)
        pairs = torch.zeros(num_units, len(units), dtype=inner.dtype).index_add_(0, owner, inner * (weight @ weight.T))
        self._pairs = torch.zeros(num_units, num_units, dtype=inner.dtype).index_add_(1, owner, pairs).numpy()
        self._costs = self._pairs.diagonal().copy()

    def costs(self, num_units: int) -> np.ndarray:
        """See `Reader.costs`. Below 0 where the unit cancels out with some that are gone."""
        return self._costs

    def eliminate(self, units: np.ndarray) -> None:
        """See `Reader.eliminate`."""
        self._costs = self._costs + 2 * self._pairs[:, units].sum(1)


def eliminated(readers: Sequence[Reader], others: np.ndarray, check: Callable[[], None] = lambda: None) -> np.ndarray:
    """What each unit costs when its turn comes, never less than one that went before it, `[U]`.

    `others` `[U]` are costs beside those of the readers, NaN for units that nothing else reads; units that nothing reads
    at all have NaN. `check` is called before each round.
    """
    found = np.full(len(others), np.nan)
    beside = np.nan_to_num(others)
    with torch.inference_mode():
        is_read = np.logical_or.reduce([~np.isnan(others), *(reader.reads(len(others)) for reader in readers)])
        left, lowest = np.flatnonzero(is_read), 0.0
        at_once = -(-len(left) // MOST_ROUNDS)
        while len(left):
            check()
            costs = sum((reader.costs(len(others)) for reader in readers), beside)
            gone = left[np.argsort(costs[left], kind="stable")][:at_once]
            for unit in gone:
                # Strictly rising, so that the order is that of the scores.
                found[unit] = lowest = max(float(costs[unit]), float(np.nextafter(lowest, np.inf)))
            for reader in readers:
                reader.eliminate(gone)
            left = np.setdiff1d(left, gone)
    return found
