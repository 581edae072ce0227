"""The proof that surgery is right, done in every job: the cut network computes what the masked original computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.grouping import Analysis
from worker.compressor.graph.evaluation import Stepper, as_tensor
from worker.compressor.graph.network import Network
from worker.compressor.graph.surgery import Cut, masked

TOLERANCE = 1e-4
#: Half precision rounds by 2**-11; sums of rounded terms are compared.
_TOLERANCE_HALF = 2e-2
#: Share of the magnitude that counts as spread at least: 80 roundings of float32 fit into the tolerance.
_LEAST_SPREAD = 0.1
#: Their outputs lie in a fixed range, which hides differences of the inputs.
SATURATING = {"Softmax", "LogSoftmax", "Sigmoid", "Tanh", "HardSigmoid"}


@dataclass(frozen=True)
class Proof:
    """Largest differences over all consumers, relative to the spread of what the original computes there (`_scale`).

    `error`: cut network against masked original; `control`: cut network against the original as it is. `vacuous`: the
    control differs by less than 100 times the tolerance, so the comparison proves nothing.
    """

    error: float
    control: float
    vacuous: bool


def prove(original: Network, cut: Cut, analysis: Analysis, feeds: Mapping[str, np.ndarray]) -> Proof:
    """Compare the cut network with the masked original at every consumer and before every saturation.

    `feeds` are samples of the user's; their number is the caller's choice (a few are enough).

    Raises:
        GraphError: `surgery_failed` if they differ by more than the tolerance: the cut must not be used.
    """
    networks = (cut.network, masked(original, analysis, cut.kept), original)
    return _compare(networks, _watched(original, analysis), cut.lines, feeds)


def prove_shortened(
    original: Network, shortened: Network, silent: Network, sums: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> Proof:
    """Compare a network without some residual branches with `silent`, the original in which these are zero.

    They are compared at `sums`, where the branches ended, before every saturation and at the outputs.

    Raises:
        GraphError: as `prove`.
    """
    left = {output for node in shortened.nodes for output in node.outputs}
    watched = {port.name for port in original.outputs} | _saturated(original) | set(sums)
    return _compare((shortened, silent, original), watched & left, {}, feeds)


def _compare(
    networks: tuple[Network, Network, Network],
    watched: set[str],
    cut_lines: Mapping[str, list[tuple[int, np.ndarray]]],
    feeds: Mapping[str, np.ndarray],
) -> Proof:
    """The cut network, the masked original and the original, side by side; `cut_lines` as in `Cut.lines`."""
    original = networks[2]
    tensors = {name: as_tensor(np.asarray(array)) for name, array in feeds.items()}
    tolerance = _TOLERANCE_HALF if _is_half(original) else TOLERANCE
    walks = [_Walk(network, tensors, watched) for network in networks]
    error, control, worst = 0.0, 0.0, ""
    with torch.no_grad():
        for name in [output for node in original.nodes for output in node.outputs if output in watched]:
            now, zeroed, whole = (walk.until(name) for walk in walks)
            lines = cut_lines.get(name, [])
            difference = _difference(_chosen(zeroed, lines), now)
            if not difference <= error:
                error, worst = difference, name
            control = max(control, _difference(_chosen(whole, lines), now))
    if not error <= tolerance:
        raise GraphError(
            f"the cut network differs from the masked original by {error:.2e} at '{worst}'", code="surgery_failed"
        )
    return Proof(error, control, control < 100 * tolerance)


class _Walk:
    """One network evaluated up to a value at a time, so that three run in lockstep with live tensors only."""

    def __init__(self, network: Network, feeds: Mapping[str, torch.Tensor], watched: set[str]) -> None:
        self._stepper = Stepper(network, feeds, keep=frozenset(watched))

    def until(self, name: str) -> torch.Tensor:
        """The value; it is forgotten afterwards."""
        while name not in self._stepper.env:
            self._stepper.step()
        value: Any = self._stepper.env[name]
        if name in self._stepper.env and not self._stepper.is_needed(name):
            del self._stepper.env[name]
        return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))


def _watched(network: Network, analysis: Analysis) -> set[str]:
    """Outputs of consumers that are not cut along several axes, what goes into a saturation, and the outputs."""
    consumers = {piece.node for group in analysis.groups for piece in group.slices if piece.role == "consumes"}
    found = {port.name for port in network.outputs} | _saturated(network)
    found |= {node.outputs[0] for node in network.nodes if node.name in consumers}
    made = {output for node in network.nodes for output in node.outputs}
    return {name for name in found & made if _is_comparable(analysis, name)}


def _saturated(network: Network) -> set[str]:
    """What goes into a saturation, constants excepted."""
    return {node.inputs[0] for node in network.nodes if node.op in SATURATING} - network.tensors.keys()


def _is_comparable(analysis: Analysis, name: str) -> bool:
    narrowed = [layer for layer in analysis.labels.get(name, []) if (analysis.group_of[layer.array] >= 0).any()]
    return name not in analysis.facts.known and all(len(layer.axes) == 1 for layer in narrowed)


def _chosen(value: torch.Tensor, lines: list[tuple[int, np.ndarray]]) -> torch.Tensor:
    for axis, positions in lines:
        value = value.index_select(axis, torch.from_numpy(positions))
    return value


def _difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = expected.double(), got.double()
    return float((a - b).abs().max() / _scale(a))


def _scale(value: torch.Tensor) -> torch.Tensor:
    """What a difference is measured by: the spread, unless that is too small to be told from rounding.

    One element per sample spreads by what the samples happen to be, a single one not at all: its magnitude counts.
    """
    is_single = value.ndim == 0 or value[0].numel() == 1
    magnitude = value.abs().max()
    return (value.max() - value.min()).clamp(min=magnitude * (1.0 if is_single else _LEAST_SPREAD)).clamp(min=1e-12)


def _is_half(network: Network) -> bool:
    return any(array.dtype.name in ("float16", "bfloat16") for array in network.tensors.values())
