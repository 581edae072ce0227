"""Cut units out of a network, and the masked original that the cut network must compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from worker.compressor.errors import GraphError
from worker.compressor.graph.channels.grouping import Analysis, Slice
from worker.compressor.graph.evaluation import observe
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.operator import Rewrites
from worker.compressor.graph.replay import Replay, removed_classes, replay

_MASKED = "/Masked"


@dataclass(frozen=True)
class WeightCut:
    """One row of `weights` in `report.json`: an uploaded tensor that lost something. Indices refer to the upload."""

    name: str
    nodes: tuple[str, ...] | None
    axes: Mapping[str, list[Any]]
    zero: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        row: dict[str, Any] = {"name": self.name, "axes": dict(self.axes), "zero": list(self.zero)}
        return row if self.nodes is None else row | {"nodes": list(self.nodes)}


@dataclass(frozen=True)
class Cut:
    """A narrower network and what was done to it.

    `lines` gives, per narrowed value of the original and axis, the original positions that are left, in their order
    now; values whose channels lie along several axes are not in it.
    """

    network: Network
    weights: list[WeightCut]
    exact: bool
    inexact: list[dict[str, Any]]
    kept: dict[int, np.ndarray]
    lines: dict[str, list[tuple[int, np.ndarray]]]


def cut(network: Network, analysis: Analysis, kept: Mapping[int, Sequence[int] | np.ndarray]) -> Cut:
    """The network with only these units of the named groups (others keep all). `network` is not changed.

    Raises:
        GraphError: if a group would lose all units or unequal numbers per row, or the cut cannot be carried through.
    """
    chosen = {group: np.unique(np.asarray(units, np.int64)) for group, units in kept.items()}
    _check(analysis, chosen)
    walk = replay(network, analysis, chosen)
    smaller = network.copy()
    consumed = _zeroed_axes(analysis)
    for name, takes in _by_tensor(walk).items():
        smaller.tensors[name] = take(network.tensors[name], takes)
        smaller.origins[name] = _composed(network.origins[name], takes, consumed.get(name, frozenset()))
    nodes = {node.outputs[0].name: node for node in smaller.graph}
    for output, rewrites in walk.rewrites.items():
        _rewrite(smaller, nodes[output], rewrites)
    for (output, slot), numbers in walk.frozen.items():
        nodes[output].replace_input_with(slot, smaller.add_tensor(f"{output}.number", numbers))
    smaller.remove_unused()
    _check_shapes(smaller, analysis, walk)
    groups = [
        analysis.groups[group] for group, units in chosen.items() if len(units) < analysis.groups[group].num_units
    ]
    inexact = [
        {"weights": sorted({s.tensor for s in g.slices}), "why": g.inexact_because} for g in groups if not g.exact
    ]
    lines = {name: walk.lines(name) for node in network.nodes for name in node.outputs if _has_lines(walk, name)}
    return Cut(smaller, weight_cuts(smaller), not inexact, inexact, chosen, lines)


def masked(network: Network, analysis: Analysis, kept: Mapping[int, Sequence[int] | np.ndarray]) -> Network:
    """The whole network with the removed units' slices set to zero where they are read: what the cut one must compute."""
    removed = removed_classes(analysis, {group: np.asarray(units) for group, units in kept.items()})
    result = network.copy()
    zeroed: set[tuple[str, int]] = set()
    for group in analysis.groups:
        for piece in group.slices:
            if group.is_zeroed_at(piece) and group.id in kept and (piece.tensor, piece.axis) not in zeroed:
                zeroed.add((piece.tensor, piece.axis))
                gone = _gone(analysis, piece, removed)
                result.tensors[piece.tensor] = zero(result.tensors[piece.tensor], piece.axis, gone)
    return result


def weight_cuts(network: Network) -> list[WeightCut]:
    """The rows of `weights` in `report.json`, over all cuts since the upload."""
    left = [network.origins[name] for name in sorted(network.origins) if not network.origins[name].made]
    rows = []
    for origin in (*left, *network.lost):
        axes = {str(axis): _listed(kept) for axis, kept in sorted(origin.kept.items()) if _is_cut(origin, axis)}
        if axes:
            zero_axes = tuple(str(axis) for axis in sorted(origin.zero) if str(axis) in axes)
            rows.append(WeightCut(origin.source, origin.nodes, axes, zero_axes))
    return rows


def take(array: np.ndarray, takes: Mapping[int, np.ndarray]) -> np.ndarray:
    """The array with these positions per axis, `(n,)`, or `(parts, n)` for each of equal parts of axis 0."""
    for axis, positions in sorted(takes.items(), reverse=True):
        array = np.take(array, positions, axis) if positions.ndim == 1 else _take_parts(array, axis, positions)
    return np.ascontiguousarray(array)


def zero(array: np.ndarray, axis: int, gone: np.ndarray) -> np.ndarray:
    """A copy with the marked positions of an axis set to zero; `gone` is `(n,)`, or `(parts, n)` per part of axis 0."""
    array = array.copy()
    rows = np.atleast_2d(gone)
    for part, flags in zip(np.split(array, len(rows)) if len(rows) > 1 else [array], rows, strict=True):
        part[(slice(None),) * axis + (flags,)] = 0  # np.split gives views
    return array


def _take_parts(array: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    parts = np.split(array, len(positions))
    return np.concatenate([np.take(part, row, axis) for part, row in zip(parts, positions, strict=True)])


def _check(analysis: Analysis, kept: Mapping[int, np.ndarray]) -> None:
    for number, units in kept.items():
        group = analysis.groups[number]
        if not len(units) or units[0] < 0 or units[-1] >= group.num_units:
            raise GraphError(f"group {number} has {group.num_units} units; at least one of them is kept")
        if not group.partition.is_even(np.setdiff1d(np.arange(group.num_units), units)):
            raise GraphError(f"group {number} would lose unequal numbers of the parts of a grouped operator or reshape")


def _zeroed_axes(analysis: Analysis) -> dict[str, frozenset[int]]:
    axes: dict[str, frozenset[int]] = {}
    for group in analysis.groups:
        for piece in group.slices:
            if group.is_zeroed_at(piece):
                axes[piece.tensor] = axes.get(piece.tensor, frozenset()) | {piece.axis}
    return axes


def _by_tensor(walk: Replay) -> dict[str, dict[int, np.ndarray]]:
    found: dict[str, dict[int, np.ndarray]] = {}
    for (name, axis), positions in walk.takes.items():
        length = walk.network.tensors[name].shape[axis]
        if positions.shape[-1] != length or (positions != np.arange(length)).any():
            found.setdefault(name, {})[axis] = positions
    return found


def _composed(origin: Origin, takes: Mapping[int, np.ndarray], consumed: frozenset[int]) -> Origin:
    """The origin after a further cut: its indices still refer to the upload."""
    kept = dict(origin.kept)
    for axis, positions in takes.items():
        before = kept.get(axis, np.arange(origin.shape[axis]))
        if positions.ndim == 1:
            kept[axis] = before[..., positions]
        else:
            rows = np.broadcast_to(np.atleast_2d(before), (len(positions), before.shape[-1]))
            kept[axis] = np.take_along_axis(rows, positions, 1)
    return replace(origin, kept=kept, zero=origin.zero | (consumed & takes.keys()))


def _rewrite(network: Network, node: ir.Node, rewrites: Rewrites) -> None:
    """Give a node its own shape inputs: constants where all numbers are known, else the computed ones under a mask."""
    for place, numbers in rewrites.items():
        if isinstance(numbers, float):
            node.attributes[str(place)] = ir.AttrFloat32(str(place), numbers)
            continue
        if isinstance(place, str):
            node.attributes[place] = _attribute(node, place, numbers)
            continue
        if place >= len(node.inputs):
            node.resize_inputs(place + 1)
        node.replace_input_with(place, _numbers(network, node, place, numbers))
    if node.op_type == "Split" and rewrites:
        node.attributes.pop("num_outputs", None)  # the sizes say it now


def _attribute(node: ir.Node, name: str, numbers: Sequence[int | None] | np.ndarray) -> ir.Attr:
    old = node.attributes.get(name)
    if old is not None and old.type == ir.AttributeType.INT:
        assert numbers[0] is not None
        return ir.AttrInt64(name, numbers[0])
    before = [] if old is None else old.as_ints()
    return ir.AttrInt64s(name, [before[index] if number is None else number for index, number in enumerate(numbers)])


def _numbers(network: Network, node: ir.Node, slot: int, numbers: Sequence[int | None] | np.ndarray) -> ir.Value:
    old, name = node.inputs[slot], f"{node.outputs[0].name}.shape"
    array = None if old is None else network.tensors.get(old.name or "")
    if isinstance(numbers, np.ndarray):
        return _constant(network, old, name, numbers if array is None else numbers.astype(array.dtype))
    if all(number is not None for number in numbers):
        return _constant(network, old, name, np.array(numbers, np.int64 if array is None else array.dtype))
    if array is not None:
        before = array.reshape(-1).tolist()
        whole = [b if number is None else number for number, b in zip(numbers, before, strict=True)]
        return _constant(network, old, name, np.array(whole, array.dtype).reshape(array.shape))
    assert old is not None
    return _computed(network, node, old, name, numbers)


def _constant(network: Network, old: ir.Value | None, name: str, numbers: np.ndarray) -> ir.Value:
    """The numbers under the name that they had, where nothing else reads them; else a constant of its own."""
    if old is None or old.name not in network.tensors or len(old.uses()) > 1 or old.is_graph_output():
        return network.add_tensor(name, numbers)
    network.tensors[old.name] = numbers
    return old


def _computed(network: Network, node: ir.Node, old: ir.Value, name: str, numbers: Sequence[int | None]) -> ir.Value:
    """`old * keep + fixed`: the numbers computed at run time where nothing was cut, constants elsewhere."""
    keep = np.array([number is None for number in numbers], np.int64)
    fixed = np.array([number or 0 for number in numbers], np.int64)
    total = old.producer()
    if total is not None and (total.name or "").endswith(_MASKED):  # made by an earlier cut: mask what it masked
        product = total.inputs[0].producer() if total.inputs[0] is not None else None
        assert product is not None
        source, before, constant = product.inputs[0], product.inputs[1], total.inputs[1]
        assert source is not None and before is not None and constant is not None
        fixed = np.where(keep, network.tensors[constant.name or ""], fixed)
        old, keep = source, keep * network.tensors[before.name or ""]
    product = ir.Node("", "Mul", [old, network.add_tensor(f"{name}.keep", keep)], name=f"{name}/Mul")
    product.outputs[0].name = network.unique_name(f"{name}.kept")
    total = ir.Node(
        "", "Add", [product.outputs[0], network.add_tensor(f"{name}.fixed", fixed)], name=f"{name}{_MASKED}"
    )
    total.outputs[0].name = network.unique_name(name)
    network.graph.insert_before(node, [product, total])
    return total.outputs[0]


def _check_shapes(network: Network, analysis: Analysis, walk: Replay) -> None:
    """The cut network must run, and every value must have the shape that the walk foretold."""
    shapes = {port.name: analysis.facts.shapes[port.name] for port in network.inputs}
    for name, shape in observe(network, shapes).shapes.items():
        if name not in analysis.facts.shapes or name in network.tensors or 0 in shape:
            continue
        if shape != walk.shape_now(name):
            raise GraphError(f"'{name}' has the shape {list(shape)} after the cut, not {list(walk.shape_now(name))}")


def _gone(analysis: Analysis, piece: Slice, removed: np.ndarray) -> np.ndarray:
    home = next(h for h in analysis.homes[piece.tensor] if h.axis == piece.axis and h.labels.shape == piece.units.shape)
    return removed[home.labels]


def _has_lines(walk: Replay, name: str) -> bool:
    return any(len(layer.axes) == 1 for layer in walk.layers.get(name, []))


def _is_cut(origin: Origin, axis: int) -> bool:
    return origin.kept[axis].shape[-1] < origin.shape[axis]


def _listed(kept: np.ndarray) -> list[Any]:
    if kept.ndim == 2 and (kept == kept[:1]).all():
        kept = kept[0]
    return kept.tolist()
