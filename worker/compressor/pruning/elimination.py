"""Units of a group that go one after the other, each time the one that the layers behind it can do without most easily.

Of a layer with inputs u, `H = U'U` and weights W, refitted to what is left of its inputs: without the inputs S it loses
`tr(W_S' ((H⁻¹)_SS)⁻¹ W_S)`, and the inverse and the weights for what is left follow by elimination of S (Hassibi and Stork
1993, Optimal Brain Surgeon; of structures Kurtic et al. 2023, ZipLM, arXiv 2302.04089). What a unit costs is so known with
those gone that went before it: of two that say the same each can be spared, but not both.

Shapes: P inputs that belong to the group, O outputs, U units of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

#: A group is taken apart in at most so many rounds; wider ones lose several units at once.
MOST_ROUNDS = 64
_GONE = -1


class Reader:
    """A layer that reads units of a group: `inverse` of its damped `H`, and `weight`, scaled to outputs of energy 1.

    `inverse` `[P, P]` and `weight` `[P, O]` are float64; `units` `[P]` says whose each input is. All three are taken over
    and change.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, units: np.ndarray) -> None:
        self._inverse, self._weight, self._units = inverse, weight, units

    def reads(self, num_units: int) -> np.ndarray:
        """Whether it reads each unit, `[U]`."""
        return np.isin(np.arange(num_units), self._units)

    def costs(self, num_units: int) -> np.ndarray:
        """What the layer loses without each unit, refitted to the others that are left, `[U]`; 0 for those it does not read."""
        found = np.zeros(num_units)
        for units, where in self._inputs():
            blocks = self._inverse[where.unsqueeze(2), where.unsqueeze(1)]
            weights = self._weight[where]
            # A trace of a product of small squares: solving for every output takes longer.
            products = torch.bmm(weights, weights.transpose(1, 2))
            found[units] = (torch.linalg.inv(blocks) * products).sum((1, 2)).numpy()
        return found

    def eliminate(self, units: np.ndarray) -> None:
        """Go on without these units, refitted."""
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
