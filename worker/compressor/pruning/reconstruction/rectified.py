"""The refit of a layer that a ReLU follows: what lies below zero on both sides is no error.

Zhang et al. 2015, Accelerating Very Deep Convolutional Networks (arXiv 1505.06798), section 3.2: `min Σ |relu(y) - relu(z)|²
+ λ |z - p|²` over auxiliary outputs z has a closed form for each number, p being what the layer gives now; the layer is
then refitted to z, in turn, while λ rises.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PENALTIES = (0.1, 0.3, 1.0, 1.0)


def auxiliary(wanted: Tensor, given: Tensor, penalty: float) -> Tensor:
    """The z that minimises `(relu(wanted) - relu(z))² + penalty · (z - given)²`, number by number.

    Above zero that is the mean of the goal and of what is given, at the cost of `penalty / (1 + penalty)` times the square
    of their distance; below zero it is what is given, at the cost of the goal's square. The second is less where the goal
    is at most `c / (1 - c)` times as far above zero as the given is below, `c² = penalty / (1 + penalty)`.
    """
    goal = wanted.relu()
    root = math.sqrt(penalty / (1 + penalty))
    mean = torch.add(goal, given, alpha=penalty).div_(1 + penalty)
    return torch.where(goal.add_(given, alpha=root / (1 - root)) <= 0, given, mean)
