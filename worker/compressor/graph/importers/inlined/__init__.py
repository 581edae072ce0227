"""TorchScript in by the second route: our own walk over a module's inlined graph."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.aten import Builder, Tensor, Unsupported, Value
from worker.compressor.graph.importers.inlined.walker import Walker, address

#: Sizes of the free axes in the trials: the batch, and any other (a multiple of 32, for what halves it five times).
_BATCH, _LENGTH = (7, 11), (64, 96)


def convert(
    module: Any, signature: Sequence[Mapping[str, Any]], inputs: Sequence[torch.Tensor | Any]
) -> tuple[ir.Model, dict[str, str], Value]:
    """The network as ONNX, the dotted name of each constant in the module, and what forward returns (of `Tensor`s).

    `inputs` are the arguments of one call, as `signature` lists them; those that are not tensors are fixed.

    Raises:
        ImportFailed: naming the operator, and its line in the source where the file has it.
    """
    build = Builder(len(_BATCH))
    arguments = [
        build.input(row["name"], _trials(row["shape"], given.dtype), row["shape"])
        if isinstance(given, torch.Tensor)
        else given
        for row, given in zip(signature, inputs, strict=True)
    ]
    result = Walker(build, _names(module)).run(module, arguments)
    batch = next((row["shape"][0] for row in signature if _has_free_batch(row)), None)
    tensors = flat(result)
    if not tensors:
        raise ImportFailed("the network returns no tensor", code="unsupported_output", hint="Return tensors.")
    names = ["output"] if len(tensors) == 1 else [f"output_{index}" for index in range(len(tensors))]
    try:
        model = build.finish(list(zip(names, tensors, strict=True)), {} if batch is None else {0: batch})
    except Unsupported as error:
        raise ImportFailed(f"an operator {error}", code="unsupported_operator", hint="Save it as ONNX.") from error
    return model, build.sources, result


def flat(result: Value) -> list[Tensor]:
    """The tensors in what forward returns, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for item in result for tensor in flat(item)]
    if isinstance(result, dict):
        return [tensor for item in result.values() for tensor in flat(item)]
    if result is None:
        return []
    raise ImportFailed(
        f"the network returns a {type(result).__name__}", code="unsupported_output", hint="Return tensors alone."
    )


def _has_free_batch(row: Mapping[str, Any]) -> bool:
    return bool(row.get("shape")) and isinstance(row["shape"][0], str)


def _trials(shape: Sequence[int | str], dtype: torch.dtype) -> list[torch.Tensor]:
    """Meta tensors of two sizes that differ in every free axis."""
    return [
        torch.empty(
            [
                size if isinstance(size, int) else (_LENGTH if axis else _BATCH)[trial]
                for axis, size in enumerate(shape)
            ],
            dtype=dtype,
            device="meta",
        )
        for trial in range(len(_BATCH))
    ]


def _names(module: Any) -> dict[tuple[int, tuple[int, ...]], str]:
    """Dotted names by address; the first of tied tensors stands for all."""
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        names.setdefault(address(tensor), name)
    with contextlib.suppress(RuntimeError):
        for name, value in module.code_with_constants[1].const_mapping.items():
            if isinstance(value, torch.Tensor):
                names.setdefault(address(value), f"CONSTANTS.{name}")
    return names
