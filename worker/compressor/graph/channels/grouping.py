"""Which channels belong together: label propagation over all values, with union-find over the labels.

Every axis of every weight gets fresh labels; the channel rules of the operators join those that mean one channel. A
class of joined labels that something produces, and nothing pins, can be removed as a unit. Two relations come out:
*equal set* (residuals, depthwise, BatchNorm: one class) and *equal count per row* (grouped convolutions, reshapes to
heads or groups: any members, the same number in each row; `partition` says what that leaves to choose).

The idea of propagating masks over an ONNX graph is that of SPA (arXiv 2403.18955); that pure data movement needs no
rules, because the operator itself can be run on labels, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.compressor.graph.channels.labels import Role
from worker.compressor.graph.channels.layer import Layer
from worker.compressor.graph.channels.partition import Partition
from worker.compressor.graph.channels.stretching import Stretches
from worker.compressor.graph.evaluation import Facts


@dataclass(frozen=True)
class Slice:
    """Where the units of a group lie in a tensor.

    `units` has one entry per position along `axis`: the unit's number in the group, -1 where the position is not of
    this group. For the inputs of a grouped convolution it is `(parts, n)`: axis 0 of the tensor falls into `parts`
    equal parts, and row p says which unit lies where along `axis` within part p.

    `role`: "produces" (output axis of a weight, its bias), "follows" (BatchNorm, PRelu, depthwise, constants that are
    added), "consumes" (input axis of a weight).
    """

    tensor: str
    node: str
    axis: int
    units: np.ndarray
    role: Role


@dataclass(frozen=True)
class Group:
    """Channels that are decided on together: units, each removed everywhere at once or kept.

    `partition` says how many of which may go, `layers` names the operators that produce them. `exact`: see `report.json`.
    `contracted`: something sums over the units without a weight, so that to mask one is to zero what makes it.
    """

    id: int
    partition: Partition
    slices: tuple[Slice, ...]
    layers: tuple[str, ...]
    exact: bool = True
    inexact_because: str | None = None
    contracted: bool = False

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return len(self.partition.blocks)

    def is_zeroed_at(self, piece: Slice) -> bool:
        """Whether the removed units' slices are set to zero there in the masked original."""
        return piece.role == "consumes" or self.contracted


@dataclass(frozen=True)
class Home:
    """A run of labels: the positions along an axis of a tensor, per part of axis 0 where there are parts."""

    tensor: str
    axis: int
    labels: np.ndarray  # (n,) or (parts, n)


@dataclass(frozen=True)
class Analysis:
    """Groups that can be cut, and for each layer that cannot the reason.

    `labels` holds label layers of every value in terms of classes, `homes` the classes along the axes of each constant;
    `group_of` and `unit_of` map a class to its group (-1: stays) and its unit there. `moved` has, for each output of an
    operator that moves data, the layers as it made them, `stretched` which values that repeat one element have channels.
    """

    groups: tuple[Group, ...]
    kept_because: dict[str, str]
    facts: Facts
    labels: dict[str, list[Layer]]
    homes: dict[str, list[Home]]
    moved: dict[str, list[Layer]]
    stretched: Stretches
    group_of: np.ndarray
    unit_of: np.ndarray
