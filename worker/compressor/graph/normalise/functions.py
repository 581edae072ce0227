"""Case 8: local functions are written out where they are called.

`onnx_ir` copies the bodies and puts the attributes in. What it leaves open is done here, from the outermost functions
inwards: copies are called after their call (`block/conv`, where it would number them), ports keep their names where a
function hands an input through, versions of the operator set may differ where that changes no operator's meaning, and
a few calls must not become millions of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.normalise.names import unique, value_names

#: More nodes than any real network has; a bomb otherwise.
_MOST_NODES = 1 << 17
_MOST_DEPTH = 64
_INNER, _CALL = "featherweight.inner", "featherweight.call"
_HINT = "Export without functions: torch.onnx.export(…, dynamo=True) and onnx.inliner write them out."


def apply(model: ir.Model) -> None:
    """Replace every call of a local function by its body.

    Raises:
        ImportFailed: `inspection_resource_limit` for an expansion without measure, `unsupported_feature` for a function
            of another meaning or form than its call's.
    """
    _rename_standard_domain(model)
    for key in [key for key in model.functions if onnx.defs.has(key[1], key[0])]:
        del model.functions[key]  # the standard's own operator wins, as it does in onnxruntime
    if not model.functions:
        return
    _check_size(model)
    domains = {domain for domain, _, _ in model.functions}
    for function in model.functions.values():
        _adopt_versions(model, function)
        _end_in_own_values(function)
    while model.functions:
        _write_out_outermost(model)
    used = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    for domain in domains - used - {""}:
        model.opset_imports.pop(domain, None)


def _rename_standard_domain(model: ir.Model) -> None:
    """The standard's operators are in the domain "", by its other name "ai.onnx"."""
    holders: list[ir.Model | ir.Function] = [model, *model.functions.values()]
    for holder in holders:
        if "ai.onnx" in holder.opset_imports:
            holder.opset_imports.setdefault("", holder.opset_imports.pop("ai.onnx"))


def _check_size(model: ir.Model) -> None:
    """Nodes after expansion, counted without expanding; functions call no one in a circle (`validation`)."""
    counted: dict[ir.OperatorIdentifier, int] = {}

    def count(nodes: Iterator[ir.Node], depth: int) -> int:
        if depth > _MOST_DEPTH:
            raise _too_large(f"are nested more than {_MOST_DEPTH} deep")
        total = 0
        for node in nodes:
            key = node.op_identifier()
            if key in model.functions and key not in counted:
                counted[key] = count(model.functions[key].all_nodes(), depth + 1)
            total += counted.get(key, 1)
        return total

    if count(model.graph.all_nodes(), 0) > _MOST_NODES:
        raise _too_large(f"stand for more than {_MOST_NODES} operators")


def _too_large(why: str) -> ImportFailed:
    return ImportFailed(f"the local functions {why}", code="inspection_resource_limit", hint="Write them out.")


def _adopt_versions(model: ir.Model, function: ir.Function) -> None:
    """Let the function follow the model's operator sets; its operators mean the same there (`validation`)."""
    for domain, version in function.opset_imports.items():
        function.opset_imports[domain] = model.opset_imports.setdefault(domain, version)


def _end_in_own_values(function: ir.Function) -> None:
    """Give each output a value of its own, which can take the name that the caller has for it."""
    for index, value in enumerate(function.outputs):
        if value.producer() is None:
            node = ir.node("Identity", [value])
            function.append(node)
            function.outputs[index] = node.outputs[0]


def _write_out_outermost(model: ir.Model) -> None:
    """Expand the functions that no other calls, so that an attribute which a call leaves out is left out all the way."""
    called = {node.op_identifier() for function in model.functions.values() for node in function.all_nodes()}
    outermost = {key: function for key, function in model.functions.items() if key not in called}
    for function in outermost.values():
        for node in function.all_nodes():
            node.metadata_props[_INNER] = node.name or ""
            for value in node.outputs:
                value.metadata_props[_INNER] = value.name or ""
    try:
        kept = _prepare_calls(model.graph, outermost)
        InlinePass(criteria=lambda function: function.identifier() in outermost)(model)
    except Exception as error:  # the pass tells what it cannot do by errors of several kinds
        why = str(error.__cause__ or error)[:300]
        raise ImportFailed(
            f"a local function cannot be written out: {why}", code="unsupported_feature", hint=_HINT
        ) from error
    for key in outermost:
        model.functions.pop(key, None)  # those that nobody calls
    _rename(model.graph, kept)


def _prepare_calls(graph: ir.Graph, called: dict[ir.OperatorIdentifier, ir.Function]) -> set[str]:
    """Mark the calls, whose copies will carry the mark, and name all of their outputs; returns these names."""
    taken = value_names(graph)
    names = set()
    for node in graph.all_nodes():
        if node.op_identifier() not in called:
            continue
        label = node.name or next((value.name for value in node.outputs if value.name), node.op_type)
        node.metadata_props[_CALL] = label
        node.resize_outputs(len(called[node.op_identifier()].outputs))
        for value in node.outputs:
            value.name = value.name or unique(f"{label}/unread", taken)
            names.add(value.name)
    return names


def _rename(graph: ir.Graph, kept: set[str]) -> None:
    """Call the copies after their call; values that the caller named keep that name."""
    nodes, values = {node.name or "" for node in graph.all_nodes()}, value_names(graph)
    for node in graph.all_nodes():
        call = node.metadata_props.pop(_CALL, None)
        if call is None:
            continue
        inner = node.metadata_props.pop(_INNER)
        node.name = unique(f"{call}/{inner}", nodes) if inner else None
        for value in node.outputs:
            name = value.metadata_props.pop(_INNER, "")
            if name and value.name not in kept:
                value.name = unique(f"{call}/{name}", values)
