"""TorchScript in (scripted, traced, frozen): by torch's ONNX exporter, else by our own walk over the inlined graph.

Whichever way it came, every parameter that matters must be found again, and the network must compute what the module does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers.archive import check_archive
from worker.compressor.graph.importers.arguments import Arguments, Signature, read_arguments
from worker.compressor.graph.importers.exported import export
from worker.compressor.graph.importers.half_products import part_products
from worker.compressor.graph.importers.inlined import convert
from worker.compressor.graph.importers.layer_names import mark_made, name_layers
from worker.compressor.graph.importers.onnx import try_once
from worker.compressor.graph.network import Network
from worker.compressor.graph.normalise import normalise
from worker.compressor.graph.structure import Structure, describe, leaves

#: Largest difference to the module, relative to its largest output: the gate against a wrong conversion.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2
#: Other sizes for free axes that are not the batch, where the module takes them; the last was not seen by the conversion.
_OTHER_LENGTHS = (96, 160)
_RECURRENT = {"aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"}


def load_module(path: Path) -> Any:
    """The module in the file, in inference mode on the CPU.

    Raises:
        ImportFailed: for an archive that is unsafe or that torch does not read.
    """
    check_archive(path)
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, AttributeError) as error:
        text = str(error)
        unknown = "Unknown builtin op" in text or "Unknown type name" in text
        raise ImportFailed(
            f"torch cannot load the file: {text.strip()[:300]}",
            code="unknown_operator" if unknown else "malformed_model",
            hint="Save the network again with the torch that made it, from torch's own operators.",
        ) from error


def import_torchscript(path: Path, signature: Signature | None) -> Network:
    """The network in the file. Tensors keep the module's dotted names as `source`, layers are called by module path.

    Raises:
        ImportFailed: `signature_needed` without a signature; else with what cannot be taken.
    """
    module = load_module(path)
    if signature is None:
        raise ImportFailed("TorchScript does not say what goes in", code="signature_needed", hint="Give `inputs`.")
    arguments = read_arguments(module, signature)
    if not arguments.rows:
        raise ImportFailed("the signature has no tensor", code="no_inputs", hint="Give name, dtype and shape of each.")
    structure = _structure(module, arguments)
    failures: dict[Route, ImportFailed] = {}
    for route in _routes(module, structure):
        try:
            network = route(module, arguments, structure)
            network.structure = structure
            part_products(network)
            _check_nothing_lost(network, module, arguments)
            mark_made(network, module.state_dict().keys() | dict(module.named_buffers()).keys())
            name_layers(network)
            try_once(network, arguments.rows)
            _check_parity(network, module, arguments)
            return network
        except ImportFailed as error:
            failures[route] = error
    raise failures.get(by_walk) or failures[by_exporter]  # the walk says which line it is


Route = Callable[[Any, Arguments, Structure], Network]


def by_exporter(module: Any, arguments: Arguments, structure: Structure) -> Network:
    """The first route; takes only modules whose arguments and outputs are tensors."""
    num_outputs = len(list(leaves(structure["output"])))
    return export(module, arguments.rows, arguments.samples(2), num_outputs)


def by_walk(module: Any, arguments: Arguments, structure: Structure) -> Network:
    """The second route: our own importer, which tells the line of what it cannot take."""
    model, sources = convert(module, arguments)
    network = normalise(model)
    for name, origin in network.origins.items():
        network.origins[name] = dataclasses.replace(origin, source=sources.get(origin.source, origin.source))
    return network


def _routes(module: Any, structure: Structure) -> list[Route]:
    """Recurrent layers lose the names of their weights in the exporter; dicts, lists and numbers it does not take."""
    if any("port" not in leaf for leaf in (*structure["args"], *leaves(structure["output"]))):
        return [by_walk]
    if _has_mappings(structure["output"]):
        return [by_walk]
    return [by_walk, by_exporter] if _is_recurrent(module.inlined_graph) else [by_exporter, by_walk]


def _has_mappings(tree: dict[str, Any]) -> bool:
    return "dict" in tree or "list" in tree or any(_has_mappings(item) for item in tree.get("tuple", ()))


def _is_recurrent(block: Any) -> bool:
    return any(
        node.kind() in _RECURRENT or any(_is_recurrent(inner) for inner in node.blocks()) for node in block.nodes()
    )


def _structure(module: Any, arguments: Arguments) -> Structure:
    """How the module is called and what it gives back: containers and numbers, which no size may change."""
    output = _output(_call(module, arguments, arguments.samples(2)))
    for samples in (arguments.samples(3), arguments.samples(2, _OTHER_LENGTHS[0])):
        try:
            other = _output(_call(module, arguments, samples))
        except ImportFailed:
            continue  # the axis is not as free as the signature says
        if other != output:
            raise ImportFailed(
                "the network returns numbers, or as many tensors, as the sizes of its inputs say",
                code="unsupported_output",
                hint="Return tensors alone, or fix those sizes in `inputs`.",
            )
    names = [argument.name for argument in arguments.all]
    return {
        "args": arguments.tree(),
        "kwargs": [],
        "names": names,
        "optional": arguments.num_optional,
        "output": output,
    }


def _output(returned: Any) -> dict[str, Any]:
    count = 0

    def leaf(value: Any) -> dict[str, Any]:
        nonlocal count
        if isinstance(value, torch.Tensor):
            count += 1
            return {"port": count - 1}
        if value is None or isinstance(value, int | float | str):
            return {"value": value}
        raise ImportFailed(
            f"the network returns a {type(value).__name__}",
            code="unsupported_output",
            hint="Return tensors, or tuples, lists and dicts of tensors.",
        )

    output = describe(returned, leaf)
    if not count:
        raise ImportFailed("the network returns no tensor", code="unsupported_output", hint="Return tensors.")
    return output


def _call(module: Any, arguments: Arguments, tensors: list[torch.Tensor]) -> Any:
    try:
        with torch.no_grad():
            return module(*arguments.call([tensor.clone() for tensor in tensors]))
    except (torch.jit.Error, RuntimeError, TypeError, ValueError) as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        shapes = ", ".join(f"{r['name']} {list(t.shape)}" for r, t in zip(arguments.rows, tensors, strict=True))
        last = str(error).strip().splitlines()[-1]
        raise ImportFailed(
            f"the network does not run on inputs of shape {shapes}: {last[:300]}",
            code="input_mismatch",
            hint="Correct `inputs`: name, dtype and shape of each argument, in order.",
        ) from error


def _flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return [tensor for part in items for tensor in _flat(part)]


def _check_nothing_lost(network: Network, module: Any, arguments: Arguments) -> None:
    """Every parameter that the output depends on must be in the graph."""
    sources = {origin.source for origin in network.origins.values()}
    parameters = dict(module.named_parameters())
    held = {parameters[name].data_ptr() for name in sources if name in parameters}
    for name, parameter in parameters.items():
        if name in sources or parameter.data_ptr() in held or not parameter.is_floating_point():
            continue
        if _matters(module, parameter, arguments):
            raise ImportFailed(
                f"the parameter '{name}' is not found again after conversion",
                code="unsupported_feature",
                hint="Upload the network as ONNX.",
            )


def _matters(module: Any, parameter: torch.Tensor, arguments: Arguments) -> bool:
    inputs = arguments.samples(2)
    with torch.no_grad():
        before, kept = _flat(_call(module, arguments, inputs)), parameter.detach().clone()
        parameter.detach().mul_(1.5).add_(0.5)
        after = _flat(_call(module, arguments, inputs))
        parameter.detach().copy_(kept)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _check_parity(network: Network, module: Any, arguments: Arguments) -> None:
    """The graph must compute what the module does, at two batch sizes and lengths where these are free."""
    for batch in (1, 3) if arguments.has_free_batch else (1,):
        inputs = arguments.samples(batch)
        _compare(network, _flat(_call(module, arguments, inputs)), inputs)
    for length in _OTHER_LENGTHS:
        longer = arguments.samples(2, length)
        if [tensor.shape for tensor in longer] == [tensor.shape for tensor in arguments.samples(2)]:
            return
        try:
            wanted = _flat(_call(module, arguments, longer))
        except ImportFailed:
            return  # the axis is not as free as the signature says
        _compare(network, wanted, longer)


def _compare(network: Network, wanted: list[torch.Tensor], inputs: list[torch.Tensor]) -> None:
    got = run(network, dict(zip([port.name for port in network.inputs], inputs, strict=True)))
    for expected, array in zip(wanted, got.values(), strict=True):
        is_half = expected.dtype in (torch.float16, torch.bfloat16)
        error = _relative((expected.float() if is_half else expected).numpy(), array)
        if not error <= (_HALF_TOLERANCE if is_half else _TOLERANCE):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
            raise ImportFailed(
                f"the converted network differs from the module by {error:.1e} on inputs of shape {shapes}",
                code="unsupported_feature",
                hint="The network may be random, or depend on values in a way that ONNX cannot say.",
            )


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(a).max(initial=0.0)), 1e-12))
