"""Exported programs in (`.pt2` of torch.export): their graph walked with the table of `importers.aten`.

The file says everything itself: names, dtypes and shapes of what goes in, which sizes are free, and the dotted names of
all weights. What it computes is compared with torch's own run of the program at several batch sizes.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.utils import _pytree as pytree

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.half_products import part_products
from worker.compressor.graph.importers.layer_names import mark_made, name_layers
from worker.compressor.graph.importers.onnx import try_once
from worker.compressor.graph.importers.program_archive import harmless_copy
from worker.compressor.graph.importers.program_parity import check_nothing_lost, check_parity
from worker.compressor.graph.importers.program_sizes import Sizes
from worker.compressor.graph.importers.program_walk import convert
from worker.compressor.graph.network import Network
from worker.compressor.graph.normalise import normalise
from worker.compressor.graph.programs import user_inputs
from worker.compressor.graph.structure import Structure, Tree, describe

Signature = Sequence[Mapping[str, Any]]

_RE_EXPORT = "Save it again with torch.export.save(torch.export.export(model.eval(), example_inputs), path)."


def import_program(path: Path, signature: Signature | None) -> Network:
    """The network in the file. Tensors keep the names of the state dict as `source`, layers are called by module path.

    `signature` may fix sizes that are free in the file.

    Raises:
        ImportFailed: naming the node, and its line in the user's source, where that is the cause.
    """
    with harmless_copy(path) as harmless:
        program, lines = _load(harmless.path), harmless.lines
    sizes, structure = Sizes(program), _structure(program)
    if not sizes.ports:
        raise ImportFailed("the network has no inputs", code="no_inputs", hint=_RE_EXPORT)
    model, sources = convert(program, sizes, structure, lines)
    network = normalise(model)
    for name, origin in network.origins.items():
        network.origins[name] = dataclasses.replace(origin, source=sources.get(origin.source, origin.source))
    network.structure = structure
    part_products(network)
    mark_made(network, program.state_dict.keys() | program.constants.keys())
    name_layers(network)
    try_once(network, signature or sizes.signature())
    check_nothing_lost(network, program, sizes)
    check_parity(network, program, sizes)
    return network


def _load(path: Path) -> ExportedProgram:
    quiet = logging.getLogger("torch.export")
    level = quiet.level
    try:
        quiet.setLevel(logging.CRITICAL)  # it logs whole programs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except MemoryError:
        raise
    except Exception as error:  # the loader raises whatever its parts do
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        unknown = "failed to resolve" in str(error)
        raise ImportFailed(
            f"torch cannot load the file: {lines[0][:300]}",
            code="unknown_operator" if unknown else "malformed_model",
            hint=_RE_EXPORT,
        ) from error
    finally:
        quiet.setLevel(level)


def _structure(program: ExportedProgram) -> Structure:
    """How the program is called and what it gives back."""
    ports, flat = 0, []
    for spec in user_inputs(program):
        if isinstance(spec.arg, ConstantArgument):
            flat.append({"value": spec.arg.value})
        else:
            flat.append({"port": ports})
            ports += 1
    args, kwargs = pytree.tree_unflatten([_Leaf(tree) for tree in flat], program.call_spec.in_spec)
    names = program.module_call_graph[0].signature.forward_arg_names if program.module_call_graph[0].signature else None
    return {
        "args": [describe(arg, _leaf) for arg in args],
        "kwargs": [[name, describe(arg, _leaf)] for name, arg in kwargs.items()],
        "names": list(names or [f"input_{index}" for index in range(len(args))] + list(kwargs)),
        "output": _output(program),
    }


def _output(program: ExportedProgram) -> Tree:
    ports, flat = 0, []
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            flat.append(_Leaf({"value": spec.arg.value}))
        else:
            flat.append(_Leaf({"port": ports}))
            ports += 1
    if not ports:
        raise ImportFailed("the network returns no tensor", code="unsupported_output", hint="Return tensors.")
    return describe(pytree.tree_unflatten(flat, program.call_spec.out_spec), _leaf)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Stands for a value in a container, so that it is not taken for one."""

    tree: Tree


def _leaf(value: Any) -> Tree:
    assert isinstance(value, _Leaf)
    return value.tree
