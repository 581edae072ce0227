"""The refit of a layer that a ReLU follows: what lies below zero on both sides is no error.

Zhang et al. 2015, Accelerating Very Deep Convolutional Networks (arXiv 1505.06798), section 3.2: `min Σ |relu(y) - relu(z)|²
+ λ |z - p|²` over auxiliary outputs z has a closed form for each number, p being what the layer gives now; the layer is
then refitted to z, in turn, while λ rises.
"""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = (0.1, 0.3, 1.0, 1.0)


def auxiliary(wanted: Tensor, given: Tensor, penalty: float) -> Tensor:
    """The z that minimises `(relu(wanted) - relu(z))² + penalty · (z - given)²`, number by number."""
    goal = wanted.relu()
    below = given.clamp_max(0.0)
    above = ((penalty * given + goal) / (penalty + 1)).clamp_min(0.0)
    cost_below = goal.square() + penalty * (below - given).square()
    cost_above = (goal - above).square() + penalty * (above - given).square()
    return torch.where(cost_below < cost_above, below, above)
