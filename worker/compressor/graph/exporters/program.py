"""`.pt2` out: the training graph through `torch.export`, with the free axes of the file still free."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from worker.compressor.errors import ExportError
from worker.compressor.graph.evaluation import torch_dtype
from worker.compressor.graph.exporters.dotted_names import name_weights
from worker.compressor.graph.exporters.recurrent_lengths import free_recurrent_lengths
from worker.compressor.graph.network import Network
from worker.compressor.graph.structure import Structure, Tree, fill, leaves
from worker.compressor.graph.training.executor import identifier, to_module

#: Size of a free axis in the example: at 0 or 1 torch.export takes the axis for a fixed one.
_LEAST_FREE = 2
#: Python's own functions ask a free size for its number in the example, and so bound the axis to that.
_SYMBOLIC = {float: torch.sym_float, int: torch.sym_int, min: torch.sym_min, max: torch.sym_max}


def write_program(network: Network, path: Path) -> None:
    """Write the network as an exported program, called as the uploaded file was (`Network.structure`).

    Where that says nothing, positional tensors in the order of the graph's inputs go in, and one output comes as a tensor,
    several as a tuple. Weights are called as in the uploaded file where that name is a dotted path. An axis that is free
    in the file is free in the program, any other is fixed. `path` ends in `.pt2`.

    Raises:
        ExportError: if the graph cannot be exported.
    """
    structure = _without_defaults(network.structure) if network.structure else _in_order(network)
    module = to_module(network, trainable=False, fused=False).eval()
    name_weights(module, network)
    _restructure(module, structure)
    program = _export(module, network, structure)
    try:
        torch.export.save(program, path)
    except (RuntimeError, OSError, ValueError) as error:
        raise ExportError(f"the network cannot be written as an exported program: {str(error)[:300]}") from error


def _without_defaults(structure: Structure) -> Structure:
    """A program has no defaults: arguments that callers of the upload leave out are not asked for."""
    if not (num_optional := structure.get("optional", 0)):
        return structure
    return structure | {name: structure[name][:-num_optional] for name in ("args", "names")}


def _in_order(network: Network) -> Structure:
    """Tensors by position in, one tensor or a tuple of them out."""
    outputs = [{"port": index} for index in range(len(network.outputs))]
    return {
        "args": [{"port": index} for index in range(len(network.inputs))],
        "kwargs": [],
        "names": [identifier(port.name) for port in network.inputs],
        "output": outputs[0] if len(outputs) == 1 else {"tuple": outputs},
    }


def _restructure(module: fx.GraphModule, structure: Structure) -> None:
    """Give the module's forward the containers, constants and argument names of the upload."""
    graph = module.graph
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _SYMBOLIC.get(node.target, node.target)
    ports = [node for node in graph.nodes if node.op == "placeholder"]
    results = list(graph.output_node().args[0])  # type: ignore[arg-type]
    inward = pytree.tree_flatten(_example_call(structure, [0] * len(ports)))[1]
    outward = pytree.tree_flatten(fill(structure["output"], [0] * len(results)))[1]
    following = next(node for node in graph.nodes if node.op != "placeholder")
    for index, leaf in reversed(list(enumerate(_arguments(structure)))):
        if "port" in leaf:
            following = ports[leaf["port"]]
        else:
            with graph.inserting_before(following):
                following = graph.placeholder(f"constant_{index}")
    returned = [leaf["value"] if "value" in leaf else results[leaf["port"]] for leaf in leaves(structure["output"])]
    graph.output_node().args = (tuple(returned),)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(list(structure["names"]), inward, outward)))
    module.recompile()


def _arguments(structure: Structure) -> Iterator[Tree]:
    for tree in (*structure["args"], *(tree for _, tree in structure["kwargs"])):
        yield from leaves(tree)


def _example_call(structure: Structure, ports: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = tuple(fill(tree, ports) for tree in structure["args"])
    return args, {name: fill(tree, ports) for name, tree in structure["kwargs"]}


def _export(module: fx.GraphModule, network: Network, structure: Structure) -> ExportedProgram:
    """The strictest form that works: free axes of names, then with checks at run time, then as torch infers them."""
    failure: Exception | None = None
    for axes, deferred in ((_named_axes, False), (_named_axes, True), (_inferred_axes, True)):
        try:
            with warnings.catch_warnings(), torch.no_grad(), free_recurrent_lengths():
                warnings.simplefilter("ignore")  # about examples of a size that torch may take for fixed
                args, kwargs = _example_call(structure, _examples(network))
                free_args, free_kwargs = _example_call(_without_values(structure), axes(network))
                return torch.export.export(
                    module,
                    args,
                    kwargs,
                    dynamic_shapes=dict(zip(structure["names"], [*free_args, *free_kwargs.values()], strict=True)),
                    prefer_deferred_runtime_asserts_over_guards=deferred,
                )
        except Exception as error:  # torch's exporter has many kinds of its own
            failure = failure or error
    raise ExportError(f"the network cannot be exported: {str(failure).strip()[:300]}") from failure


def _without_values(structure: Structure) -> Structure:
    """Nothing is said of the sizes of constants."""

    def blank(tree: Tree) -> Tree:
        ((kind, content),) = tree.items()
        if kind == "dict":
            return {kind: [[key, blank(item)] for key, item in content]}
        if kind in ("list", "tuple"):
            return {kind: [blank(item) for item in content]}
        return {"value": None} if kind == "value" else tree

    args, kwargs = structure["args"], structure["kwargs"]
    return {**structure, "args": [blank(a) for a in args], "kwargs": [[name, blank(tree)] for name, tree in kwargs]}


def _examples(network: Network) -> tuple[torch.Tensor, ...]:
    examples = []
    for port in network.inputs:
        tried = network.sample_shapes[port.name]
        shape = port.shape or (None,) * len(tried)
        sizes = [
            size if isinstance(size, int) else max(known, _LEAST_FREE) for size, known in zip(shape, tried, strict=True)
        ]
        examples.append(torch.zeros(sizes, dtype=torch_dtype(port.dtype)))
    return tuple(examples)


def _named_axes(network: Network) -> tuple[dict[int, Any], ...]:
    """Axes of one name are one dimension, as in the file; nameless ones are dimensions of their own, but for the batch."""
    dimensions: dict[str, Any] = {}
    free = []
    for index, port in enumerate(network.inputs):
        axes: dict[int, Any] = {}
        for axis, size in _free_axes(network, index):
            name = str(size or ("batch" if axis == 0 else f"{port.name}_{axis}"))
            plain = re.sub(r"\W+", "_", f"_{name}" if not name[:1].isalpha() else name)
            axes[axis] = dimensions.setdefault(plain, Dim(plain))
        free.append(axes)
    return tuple(free)


def _inferred_axes(network: Network) -> tuple[dict[int, Any], ...]:
    """The first axis free, the others where torch finds them free: a file can promise more than its network keeps."""
    return tuple(
        {axis: Dim.DYNAMIC if axis == 0 else Dim.AUTO for axis, _ in _free_axes(network, index)}
        for index in range(len(network.inputs))
    )


def _free_axes(network: Network, index: int) -> Iterator[tuple[int, str | None]]:
    port = network.inputs[index]
    shape = port.shape or (None,) * len(network.sample_shapes[port.name])
    for axis, size in enumerate(shape):
        if not isinstance(size, int):
            yield axis, size
