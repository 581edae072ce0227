"""What residual branches do to samples: to what they are added to, and to the answers of the network.

Shapes: N samples, and whatever axes the values have beyond these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from worker.compressor.graph.evaluation import Stepper, run, shared_tensor
from worker.compressor.graph.network import Network
from worker.compressor.graph.residuals import Residual
from worker.compressor.graph.shortening import shorten
from worker.compressor.pruning.evidence import Samples

#: A branch changes the answers on average over these; more change the time.
MAX_ROWS = 64


@dataclass
class Influences:
    """Measured when first asked for, on the samples that there is room for."""

    view: Network
    samples: Samples

    def turn(self, branch: Residual) -> float:
        """Block Influence: `1 - cos(x, x + f(x))`, of each token, or of each sample where there are no tokens, on average."""
        return self._turns[branch.add, branch.slot]

    def error(self, branch: Residual) -> float:
        """What the answers are off by without the branch, as a share of their energy."""
        self.samples.check()
        without = self._answers(shorten(self.view, [branch]))
        lost = sum(float(np.square(now - then).sum()) for now, then in zip(without, self._whole, strict=True))
        return lost / max(sum(float(np.square(answer).sum()) for answer in self._whole), 1e-30)

    @cached_property
    def _turns(self) -> dict[tuple[str, int], float]:
        found = {}
        stepper = Stepper(self.view, self._feeds(self.samples.pass_rows))
        with torch.inference_mode():
            while (node := stepper.peek()) is not None:
                operands = stepper.inputs(node) if node.op == "Add" else []
                total = stepper.step()[0]
                for slot, operand in enumerate(operands):
                    if isinstance(operand, Tensor) and operand.is_floating_point() and operand.shape == total.shape:
                        found[node.outputs[0], slot] = _turn(operand, total)
        return found

    @cached_property
    def _whole(self) -> list[np.ndarray]:
        return self._answers(self.view)

    def _answers(self, network: Network) -> list[np.ndarray]:
        found = run(network, self._feeds(min(self.samples.pass_rows, MAX_ROWS)))
        return [array.astype(np.float64) for array in found.values() if array.dtype.kind == "f"]

    def _feeds(self, rows: int) -> dict[str, Tensor]:
        return {name: shared_tensor(np.ascontiguousarray(feed[:rows])) for name, feed in self.samples.feeds.items()}


def _turn(before: Tensor, after: Tensor) -> float:
    first = 2 if before.ndim == 3 else min(1, before.ndim - 1)
    cosines = torch.cosine_similarity(before.float().flatten(first), after.float().flatten(first), dim=-1)
    return float((1 - cosines.double()).mean().clamp_min(0))
