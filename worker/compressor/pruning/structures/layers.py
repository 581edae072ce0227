"""Whole residual branches: Veit et al. 2016 (arXiv 1605.06431); of transformers Men et al. 2024, ShortGPT (arXiv 2403.03853)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from worker.compressor.errors import NothingRemoved
from worker.compressor.pruning.criteria import CRITERIA
from worker.compressor.pruning.dropping import drop
from worker.compressor.pruning.matrices import matrices_at
from worker.compressor.pruning.selection import LEFT_OUT, is_chosen
from worker.compressor.pruning.structures import STRUCTURES, Shortening, Skips

if TYPE_CHECKING:
    from worker.compressor.graph.residuals import Residual, Residuals
    from worker.compressor.pruning.evidence import Evidence

_NO_SKIP = "it is in no branch beside an identity, so it cannot go as a whole"


@STRUCTURES.register
class Layers(Shortening):
    """Of each sum `x + f(x)` that goes only x is left; which go is a small knapsack over the branches' scores and costs."""

    name = "layers"
    help = "whole residual branches, so that the network is less deep; the sums behind them pass their skips on"

    def choose(self, ceilings: Mapping[str, float], rng: np.random.Generator, refused: Mapping[str, str]) -> Skips:
        """See `Shortening.choose`."""
        branches, reasons = self._residuals.branches, self._left_out | dict(refused)
        # A stream for each branch: what one draws does not depend on which others are left out or refused.
        streams = rng.spawn(len(branches))
        pairs = [
            (branch, stream) for branch, stream in zip(branches, streams, strict=True) if branch.add not in reasons
        ]
        scores = np.array([self._score(branch, stream) for branch, stream in pairs])

        def costs(removed: Collection[int]) -> dict[str, int]:
            left = self._residuals.cost([pairs[part][0] for part in removed])
            return {"macs": left.macs, "params": left.params}

        removed = [pairs[part][0] for part in drop(scores, costs, ceilings)]
        if not removed:
            raise NothingRemoved("the network meets the target already, so nothing was removed")
        return Skips(removed, self._kept_because(reasons))

    @cached_property
    def _residuals(self) -> Residuals:
        from worker.compressor.graph.residuals import Residuals

        return Residuals(self.network, self.shapes)

    @cached_property
    def _left_out(self) -> dict[str, str]:
        """Why branches stay, by sum: the spec leaves one of their layers out."""
        found = {}
        for branch in self._residuals.branches:
            layer = next((layer for layer in branch.layers if not is_chosen(layer, self.prune)), None)
            if layer is not None:
                found[branch.add] = f"in a branch with '{layer}', which the spec leaves out"
        return found

    @cached_property
    def _evidence(self) -> Evidence:
        return self.look([])

    def _score(self, branch: Residual, rng: np.random.Generator) -> float:
        nodes = [node for node in self.network.nodes if node.outputs[0] in branch.nodes]
        matrices = [matrix for node in nodes for matrix in matrices_at(node, self.network)]
        return CRITERIA.get(self.prune.criterion)().branch_score(branch, matrices, self._evidence, rng)

    def _kept_because(self, reasons: Mapping[str, str]) -> dict[str, str]:
        found = dict.fromkeys(self._residuals.layers, _NO_SKIP)
        for branch in self._residuals.branches:
            found |= {layer: reasons.get(branch.add, "") for layer in branch.layers if found[layer]}
        left_out = {layer: LEFT_OUT for layer in found if not is_chosen(layer, self.prune)}
        return {layer: reason for layer, reason in (found | left_out).items() if reason}
