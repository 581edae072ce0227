"""TorchScript in by the second route: our own walk over a module's inlined graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import torch_dtype
from worker.compressor.graph.importers.arguments import Arguments
from worker.compressor.graph.importers.aten import Builder, Tensor, Unsupported, Value
from worker.compressor.graph.importers.aten.values import tensors_in
from worker.compressor.graph.importers.exported import constants_of
from worker.compressor.graph.importers.inlined.walker import Walker, address

_NUM_TRIALS = 2
#: Sizes of the first free axis in the trials, and of others: multiples of 32, for what halves them five times.
_BATCH, _LENGTH = (7, 11), 64


def convert(module: Any, arguments: Arguments) -> tuple[ir.Model, dict[str, str]]:
    """The network as ONNX, and the dotted name in the module of each constant.

    Raises:
        ImportFailed: naming the operator, and its line in the source where the file has it.
    """
    build, sizes = Builder(_NUM_TRIALS), _free_sizes(arguments)
    inputs = [build.input(row["name"], _trials(row, sizes), row["shape"]) for row in arguments.rows]
    parameters = frozenset(name for name, _ in module.named_parameters())
    result = Walker(build, _names(module), parameters).run(module, arguments.call(inputs))
    tensors = _flat(result)
    names = ["output"] if len(tensors) == 1 else [f"output_{index}" for index in range(len(tensors))]
    try:
        model = build.finish(list(zip(names, tensors, strict=True)), {size: name for name, size in sizes.items()})
    except Unsupported as error:
        raise ImportFailed(f"an operator {error}", code="unsupported_operator", hint="Upload it as ONNX.") from error
    return model, build.sources


def _flat(result: Value) -> list[Tensor]:
    tensors = tensors_in(result)
    if not tensors:
        raise ImportFailed("the network returns no tensor", code="unsupported_output", hint="Return tensors.")
    return tensors


def _free_sizes(arguments: Arguments) -> dict[str, tuple[int, ...]]:
    """For the name of each free axis its sizes in the trials: no two names share them."""
    sizes: dict[str, tuple[int, ...]] = {}
    for row in arguments.rows:
        for axis, size in enumerate(row["shape"]):
            if isinstance(size, str) and size not in sizes:
                more = 64 * len(sizes)
                sizes[size] = (_LENGTH + more, _LENGTH + more + 32) if axis else tuple(n + more for n in _BATCH)
    return sizes


def _trials(row: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]]) -> list[torch.Tensor]:
    """Meta tensors of two shapes that differ in every free axis."""
    dtype = torch_dtype(row.get("dtype", "float32"))
    return [
        torch.empty([s if isinstance(s, int) else sizes[s][trial] for s in row["shape"]], dtype=dtype, device="meta")
        for trial in range(_NUM_TRIALS)
    ]


def _names(module: Any) -> dict[tuple[int, tuple[int, ...]], str]:
    """Dotted names by address; the first of tied tensors stands for all."""
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers(), *constants_of(module)]:
        names.setdefault(address(tensor), name)
    return names
