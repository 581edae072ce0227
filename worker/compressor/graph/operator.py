"""What the engine knows about an operator: torch function, channel rule, MACs and weight slots, side by side.

One file per family under `operators/` registers them by `(op, since_version)`, because the meaning of an operator
changes with the opset (Softmax before 13 flattens). The same torch function runs on tensors (shapes, refit, proof) and
on `fx.Proxy` (the training graph), so there is one meaning of an operator, not two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.network import Node
from worker.compressor.graph.refused import REFUSED
from worker.compressor.registry import KeyedRegistry

if TYPE_CHECKING:
    from worker.compressor.graph.walk import Walk

Shapes = Mapping[str, tuple[int, ...]]
#: A whole number, or an fx.Proxy of one (`x.size(0)`): shape arithmetic never becomes a tensor.
Int = Any


class Call:
    """One evaluation of a node. Values are tensors, fx proxies of them, or known numbers (numpy, also of proxies)."""

    def __init__(
        self,
        node: Node,
        values: Sequence[Any],
        *,
        constant: Callable[[str], Any],
        known: Callable[[str], np.ndarray | None],
        shape: Callable[[str], tuple[int, ...]],
        dtype: Callable[[str], str] | None = None,
        device: Any = "cpu",
        training: Any = False,
        momentum: Any = 0.1,
        moving: bool = False,
        in_order: Callable[[str, Sequence[int]], Any] | None = None,
    ) -> None:
        self.node = node
        self._values = values
        self._constant = constant
        self._known = known
        self._shape = shape
        self._dtype = dtype
        self.device = device
        self.training = training
        self.momentum = momentum
        self._in_order = in_order
        self.moving = moving  # the input holds channel labels: what is put between them is 0

    def has(self, slot: int) -> bool:
        """Whether the optional input is given."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] != ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute, or its default."""
        return self.node.attributes.get(name, default)

    def rank(self, slot: int) -> int:
        """Number of axes of an input."""
        return len(self._shape(self.node.inputs[slot]))

    def shape_of_constant(self, slot: int) -> tuple[int, ...]:
        """The shape of an input that is a constant; of others only the rank may be relied on."""
        return tuple(self._shape(self.node.inputs[slot]))

    def dtype(self, slot: int) -> torch.dtype:
        """The dtype of an input, also where it is a proxy."""
        known = self.known(slot)
        if known is not None:
            return torch.int64 if known.dtype == object else getattr(torch, known.dtype.name)
        value = self.tensor(slot)
        if isinstance(value, np.ndarray):
            return torch.int64 if value.dtype == object else getattr(torch, value.dtype.name)
        if isinstance(value, torch.Tensor) or self._dtype is None:
            return value.dtype
        return getattr(torch, self._dtype(self.node.inputs[slot]))

    def observed(self, name: str) -> tuple[int, ...]:
        """The shape that an input or output had where shapes were observed; to be asked of proxies only."""
        return tuple(self._shape(name))

    def value(self, slot: int) -> Any:
        """The input as it is: a tensor (or proxy), or a numpy array of known numbers."""
        return self._values[slot] if slot < len(self._values) else None

    def tensor(self, slot: int) -> Any:
        """The input as a tensor (or proxy), None where it is absent."""
        if not self.has(slot):
            return None
        value = self._values[slot]
        return self._constant(self.node.inputs[slot]) if value is None else value

    def operand(self, slot: int) -> Any:
        """The input of an elementwise operator: a Python number where it is one known element, else a tensor."""
        known = self._known(self.node.inputs[slot])
        if known is not None and known.size == 1 and known.dtype.kind in "iufO":
            rank = max((self.rank(other) for other in range(len(self.node.inputs)) if other != slot), default=0)
            if known.ndim == 0 or (known.dtype == object and known.ndim <= rank):
                return known.item()
        return self.tensor(slot)

    def operands(self, first: int = 0) -> tuple[Any, Any]:
        """Two inputs of an elementwise operator as `operand` gives them, at least one of them a tensor (of its dtype)."""
        a, b = self.operand(first), self.operand(first + 1)
        numbers = isinstance(a, (bool, int, float)) and isinstance(b, (bool, int, float))
        return (self.tensor(first) if numbers else a), b

    def in_order(self, slot: int, order: Sequence[int]) -> Any:
        """The constant held with axis 1 in this order, so that a step need not arrange it; None where it cannot be."""
        return None if self._in_order is None else self._in_order(self.node.inputs[slot], order)

    def known(self, slot: int) -> np.ndarray | None:
        """The numbers of an input that is a constant or made from shapes; None where it is data."""
        return self._known(self.node.inputs[slot]) if self.has(slot) else None

    def ints(self, slot: int) -> list[Int]:
        """The numbers of a shape-like input (axes, sizes, starts).

        Raises:
            ImportFailed: where they are computed from data.
        """
        known = self.known(slot)
        if known is None:
            raise self.refuse(f"takes its input {slot} from data; only constants and shapes can be followed")
        return [_as_int(number) for number in known.reshape(-1).tolist()]

    def refuse(self, why: str) -> ImportFailed:
        """The error for a form of this operator that the engine does not execute."""
        node = self.node
        return ImportFailed(
            f"node '{node.name}' ({node.op}-{node.since_version}) {why}",
            code="unsupported_operator",
            hint="Export the network without this operator, or in its plain form.",
        )


def _as_int(number: Any) -> Int:
    return int(number) if isinstance(number, (int, float)) else number


Run = Callable[[Call], Any]
ChannelRule = Callable[["Walk", Node], None]
Macs = Callable[[Node, Shapes], int]
#: A number, an array, a tuple of one per output, or None where these numbers (proxies, say) have to become tensors.
Known = Callable[[Node, Sequence[np.ndarray]], Any]


class CutView(Protocol):
    """A network being cut, as an operator that moves data sees it when its own shape inputs are to be rewritten."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value before the cut."""
        ...

    def shape_now(self, name: str) -> tuple[int, ...]:
        """Shape of an input after the cut."""
        ...

    def shape_wanted(self, name: str) -> tuple[int, ...]:
        """Shape that an output is to have after the cut."""
        ...

    def numbers(self, node: Node, slot: int) -> list[int] | None:
        """The known numbers of an input before the cut."""
        ...

    def numbers_now(self, node: Node, slot: int) -> list[int] | None:
        """The known numbers of an input as the cut network computes them without rewriting."""
        ...

    def positions(self, name: str, axis: int, chosen: Sequence[int]) -> list[int]:
        """Where the chosen positions of an axis lie after the cut, those that are gone left out."""
        ...

    def goes_by_blocks(self, name: str, blocks: int) -> bool:
        """Whether the channels along axis 1 stay or go by such blocks, each as a whole."""
        ...


#: Input slot or attribute name → new numbers. A None keeps the number that the network computes there.
#: An array gives an input another shape. A float is the value of an attribute.
Rewrites = Mapping[int | str, Sequence[int | None] | np.ndarray | float]
Rewrite = Callable[[CutView, Node], Rewrites]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """All the engine knows about one operator in some of its versions.

    Attributes:
        op: ONNX name, `domain::op` outside the standard domain.
        versions: the `since_version`s with this meaning.
        run: torch function of a `Call`; a tensor, or a tuple of one per output.
        channels: how channel labels pass through; None pins every channel that reaches the operator.
        macs: multiply-accumulates of one evaluation at given shapes; None: it counts none.
        weights: input slots that hold weights (`num_params` of API.md); a scalar is not one.
        assembles: weights may be put together from several tensors by Slice and Concat.
        known: numpy function for known numbers (shape arithmetic); None: shapes cannot pass through.
        data: input slots that hold data, where other slots steer (axes, sizes); None: all.
        rewrite: the operator's own shape inputs after a cut; None: they do not depend on it.
    """

    op: str
    versions: tuple[int, ...]
    run: Run
    channels: ChannelRule | None = None
    macs: Macs | None = None
    weights: tuple[int, ...] = ()
    assembles: bool = False
    known: Known | None = None
    data: tuple[int, ...] | None = None
    rewrite: Rewrite | None = None


OPERATORS: KeyedRegistry[tuple[str, int], Operator] = KeyedRegistry("operator", "worker.compressor.graph.operators")


def register(operator: Operator) -> Operator:
    """Make the operator known in each of its versions.

    Raises:
        DuplicatePlugin: if one of them is taken.
    """
    for version in operator.versions:
        OPERATORS.add((operator.op, version), operator)
    return operator


def operator_of(node: Node) -> Operator:
    """What the engine knows about this node's operator.

    Raises:
        ImportFailed: `unknown_operator` or `unsupported_operator`, naming the node.
    """
    if node.key in OPERATORS:
        return OPERATORS.get(node.key)
    if node.since_version == 0:
        what = f"{node.domain}::{node.op}" if node.domain else node.op
        raise ImportFailed(
            f"node '{node.name}' uses the operator {what}, which is not part of the ONNX standard at this opset",
            code="unknown_operator",
            hint="Export with standard ONNX operators only.",
        )
    why, hint = REFUSED.get(node.op, ("", "Export the network without this operator, or split it off."))
    raise ImportFailed(
        f"node '{node.name}' uses the operator {node.op}-{node.since_version}, which is not supported"
        + (f": {why}" if why else ""),
        code="unsupported_operator",
        hint=hint,
    )
