"""TorchScript out: the training graph, scripted, with a free batch and BatchNorm in inference mode."""

from __future__ import annotations

import operator
import warnings
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import fx

from worker.compressor.errors import ExportError
from worker.compressor.graph.exporters.dotted_names import name_weights
from worker.compressor.graph.network import Network
from worker.compressor.graph.structure import Structure, Tree, fill
from worker.compressor.graph.training.executor import identifier, to_module


def write_torchscript(network: Network, path: Path) -> None:
    """Write the network as a scripted module, called as the uploaded one was (`Network.structure`).

    Arguments have the names of the upload's forward; those with a fixed value come last, have it as their default, and
    take no other. Where the upload was no torch module, positional tensors in the order of the graph's inputs go in, and
    one output comes as a tensor, several as a tuple. Weights have the upload's names where these are dotted paths.

    Raises:
        ExportError: if the graph cannot be scripted.
    """
    module = to_module(network, trainable=False, single=True, fused=False).eval()
    name_weights(module, network)
    if network.structure is not None:
        _restructure(module, network.structure)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about annotations in code that fx generates
            torch.jit.script(module).save(str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(f"the network cannot be written as TorchScript: {str(error).strip()[:300]}") from error


def _restructure(module: fx.GraphModule, structure: Structure) -> None:
    """Give forward the argument names, fixed values and containers of the upload."""
    graph = module.graph
    trees = [*structure["args"], *(tree for _, tree in structure["kwargs"])]
    ports = [node for node in graph.nodes if node.op == "placeholder"]
    if all("port" in tree or "value" in tree for tree in trees):  # a container of tensors goes in as its tensors
        for name, tree in zip(structure["names"], trees, strict=True):
            if "port" in tree:
                ports[tree["port"]].target = identifier(name)
        _fix(
            graph,
            [(name, tree["value"]) for name, tree in zip(structure["names"], trees, strict=True) if "value" in tree],
        )
    results = graph.output_node().args[0]
    listed = [results] if isinstance(results, fx.Node) else list(results)  # type: ignore[arg-type]
    graph.output_node().args = (fill(structure["output"], listed, _named),)
    module.recompile()


def _named(tree: Tree, items: list[Any]) -> tuple[Any, ...]:
    """A tuple whose items have the upload's names; a plain one where not all of them are tensors."""
    names = [tree["type"], *tree["fields"]]
    if not all("port" in item for item in tree["tuple"]) or any(identifier(name) != name for name in names):
        return tuple(items)
    kind = NamedTuple(tree["type"], [(field, torch.Tensor) for field in tree["fields"]])  # type: ignore[misc]
    return kind(*items)


def _fix(graph: fx.Graph, values: list[tuple[str, Any]]) -> None:
    """Arguments behind the tensors that are there for callers who give them: each takes the one value."""
    following = next(node for node in graph.nodes if node.op != "placeholder")
    for name, value in values:
        if value is not None and not isinstance(value, bool | int | float | str):
            continue  # a list: left to its default, as in the call that was looked at
        kind = Optional[torch.Tensor] if value is None else type(value)  # noqa: UP045 - as TorchScript spells it
        with graph.inserting_before(following):
            given = graph.placeholder(identifier(name), type_expr=kind, default_value=value)
        if value is not None:
            with graph.inserting_before(following):
                holds = graph.call_function(operator.eq, (given, value))
                graph.call_function(torch._assert, (holds, f"{name} is {value!r} in this network"))
