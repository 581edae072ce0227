"""Case 9: an If whose condition is the same for every input goes; the branch that it takes stays.

The condition may be constant, or follow from ranks and from sizes that the file or the signature fixes: exporters ask
whether an axis has the size 1 before they squeeze it. A free size is no number but `Free`, which spoils all that is
computed from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.normalise.names import unique, value_names
from worker.compressor.graph.operator import OPERATORS

_MOST_KNOWN = 4096
_SIZES = ("Shape", "Size")
Signature = Sequence[Mapping[str, Any]]


def apply(model: ir.Model, signature: Signature | None = None) -> None:
    """Replace every If by the branch that it takes, at the sizes that the signature fixes where the file does not.

    Raises:
        ImportFailed: `unsupported_operator` for one that data or free sizes choose by.
    """
    while choices := list(_choices(model.graph)):
        conditions = _Conditions(model, signature or [])
        taken = [(node, conditions.of(node)) for node in choices]
        if all(condition is None for _, condition in taken):
            _refuse(choices[0])
        for node, condition in taken:
            if condition is not None:
                _splice(model.graph, node, "then_branch" if condition else "else_branch")


def _choices(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        is_read = any(value.uses() or value.is_graph_output() for value in node.outputs)
        if node.op_type == "If" and node.domain == "" and is_read:
            yield node


class _Conditions:
    """What is known of a graph's values before it runs."""

    def __init__(self, model: ir.Model, signature: Signature) -> None:
        self._shapes: dict[str, tuple[int | ir.SymbolicDim, ...]] = {}
        self._nodes: dict[ir.Node, Node] = dict(zip(model.graph, Network(model, {}).nodes, strict=True))
        self._known: dict[ir.Value, np.ndarray | None] = {}
        self._shapes = _inferred(model, signature, self._computed(model))
        self._known = {}  # what was asked for before the shapes were there

    def _computed(self, model: ir.Model) -> dict[str, np.ndarray]:
        """What nodes compute from constants alone: shape inference looks into few operators (how much a Pad adds, say)."""
        found = {}
        for value in (value for node in model.graph for value in node.outputs):
            try:
                array = self._number(value)
            except (TypeError, ValueError, LookupError, RecursionError):  # whoever runs it will tell
                continue
            if array is not None and value.name:
                found[value.name] = array
        return found

    def of(self, node: ir.Node) -> bool | None:
        """The condition of an If; None where it is not the same for every input."""
        try:
            known = self._number(node.inputs[0])
            return None if known is None or known.size != 1 else bool(known.item())
        except (TypeError, ValueError, RecursionError):  # a free size was asked whether it is true
            return None

    def _number(self, value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = None
            self._known[value] = self._find(value)
        return self._known[value]

    def _find(self, value: ir.Value) -> np.ndarray | None:
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None:
            return constant.numpy() if constant.size <= _MOST_KNOWN else None
        maker = value.producer()
        if maker is None or maker not in self._nodes:
            return None
        node = self._nodes[maker]
        if node.op in _SIZES:
            whole = None if maker.inputs[0] is None else ir.convenience.get_const_tensor(maker.inputs[0])
            return self._sizes(node, self._shapes.get(node.inputs[0]) if whole is None else whole.numpy().shape)
        given = [self._number(source) for source in maker.inputs if source is not None]
        arrays = [array for array in given if array is not None]
        operator = OPERATORS.get(node.key) if node.key in OPERATORS else None
        if operator is None or operator.known is None or len(arrays) < len(given):
            return None
        result: Any = operator.known(node, arrays)
        return np.asarray(result[value.index() or 0] if isinstance(result, tuple) else result)

    def _sizes(self, node: Node, shape: Sequence[int | ir.SymbolicDim] | None) -> np.ndarray | None:
        if shape is None:
            return None
        sizes = [size if isinstance(size, int) else Free() for size in shape]
        if node.op == "Size":
            return np.array(np.prod(np.array(sizes, object)), None if any(_are_free(sizes)) else np.int64)
        asked = sizes[slice(node.attributes.get("start", 0), node.attributes.get("end"))]
        return np.array(asked, object if any(_are_free(asked)) else np.int64)


class Free:
    """A size that the file leaves free. What is computed from it is free as well, and it is neither true nor false."""

    def _spoil(self, *_: object) -> Free:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = __abs__ = _spoil
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _spoil
    __lt__ = __le__ = __gt__ = __ge__ = _spoil
    __eq__ = __ne__ = _spoil  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> NoReturn:
        raise TypeError("a free size is neither true nor false")


def _are_free(sizes: list[Any]) -> Iterator[bool]:
    return (isinstance(size, Free) for size in sizes)


def _inferred(
    model: ir.Model, signature: Signature, computed: Mapping[str, np.ndarray]
) -> dict[str, tuple[int | ir.SymbolicDim, ...]]:
    """Shapes that follow from those of the inputs; what the file says about its other values is not relied on."""
    copy = model.clone()
    for value in [
        value for node in list(copy.graph) for value in node.outputs if value.name in computed and value.uses()
    ]:
        array = computed[value.name or ""]
        made = ir.node("Constant", [], {"value": ir.tensor(array)})
        copy.graph.insert_before(copy.graph.node(0), made)
        ir.convenience.replace_all_uses_with(value, made.outputs[0])
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    rows = {row["name"]: row for row in signature}
    if rows.keys() - {value.name for value in copy.graph.inputs} and len(signature) == len(copy.graph.inputs):
        rows = {value.name: row for value, row in zip(copy.graph.inputs, signature, strict=True)}
    for value in copy.graph.inputs:
        value.shape = _told(value, rows.get(value.name or "", {}).get("shape"))
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    values = [*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)]
    return {value.name or "": tuple(value.shape) for value in values if value.shape is not None}


def _told(value: ir.Value, given: Sequence[int | str] | None) -> ir.Shape | None:
    """An input's shape with the sizes that the signature fixes; some exporters write -1 for a free size."""
    if value.shape is None:
        return None if given is None else ir.Shape(given)
    sizes = [None if isinstance(size, int) and size < 0 else size for size in value.shape]
    if given is None or len(given) != len(sizes):
        return ir.Shape(sizes)
    return ir.Shape([size if isinstance(size, int) else told for size, told in zip(sizes, given, strict=True)])


def _splice(graph: ir.Graph, choice: ir.Node, taken: str) -> None:
    """Move the branch's nodes and constants into the graph, and let what the If gave be what the branch gives."""
    branch = choice.attributes[taken].as_graph()
    choice.attributes.clear()
    values, nodes = value_names(graph), {node.name or "" for node in graph}
    results = list(branch.outputs)
    branch.outputs.clear()
    for constant in list(branch.initializers.values()):
        del branch.initializers[constant.name or ""]
        constant.name = unique(constant.name or "constant", values)
        graph.register_initializer(constant)
    own = set()
    for node in list(branch):
        branch.remove(node)
        node.name = unique(node.name, nodes) if node.name else None
        for value in node.outputs:
            value.name = unique(value.name, values) if value.name else value.name
            own.add(value)
        graph.insert_before(choice, node)
    for old, new in zip(choice.outputs, results, strict=True):
        if new not in own:
            if not old.is_graph_output():
                ir.convenience.replace_all_uses_with(old, new)
                continue
            passed = ir.node("Identity", [new])
            graph.insert_before(choice, passed)
            new = passed.outputs[0]
        own.discard(new)
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(choice, safe=True)


def _refuse(choice: ir.Node) -> NoReturn:
    """Say what the first If that is left chooses by."""
    condition = choice.inputs[0]
    asked = "" if condition is None else condition.name
    inputs = sorted(_read(condition))
    by = f"data, from the input '{inputs[0]}'" if inputs else "sizes that the file leaves free"
    raise ImportFailed(
        f"node '{choice.name or choice.outputs[0].name}' (If) chooses between two parts of the network by '{asked}', "
        f"which is computed from {by}",
        code="unsupported_operator",
        hint="Make the choice before the export: give the input a constant value, and upload one network for each."
        if inputs
        else "Say in `inputs` which sizes those axes have, or export with them fixed (without dynamic_axes).",
    )


def _read(value: ir.Value | None) -> set[str]:
    """The inputs of the network whose elements (not sizes) the value depends on."""
    found, waiting, seen = set(), [value], set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if value.is_graph_input():
            found.add(value.name or "")
        elif maker is not None and maker.op_type not in _SIZES:
            waiting.extend(maker.inputs)
    return found
