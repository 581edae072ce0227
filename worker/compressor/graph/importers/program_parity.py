"""The gates of an imported program: nothing that matters was lost, and it computes what torch makes of the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run
from worker.compressor.graph.importers.program_sizes import NUM_TRIALS, UNSEEN, Sizes
from worker.compressor.graph.network import Network
from worker.compressor.graph.programs import caller

#: Largest difference, relative to the largest output: the gate against a wrong conversion.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2
_HINT = "Upload the network as ONNX."


def check_nothing_lost(network: Network, program: ExportedProgram, sizes: Sizes) -> None:
    """Every parameter that an output depends on is in the graph.

    Raises:
        ImportFailed: `unsupported_feature`, naming the parameter.
    """
    found = {origin.source for origin in network.origins.values()}
    held = {program.state_dict[name].data_ptr() for name in found if name in program.state_dict}
    for name, tensor in program.named_parameters():
        if name in found or tensor.data_ptr() in held or not tensor.is_floating_point():
            continue
        if _matters(program, tensor, sizes.examples(0)):
            raise ImportFailed(
                f"the parameter '{name}' is not found again after conversion", code="unsupported_feature", hint=_HINT
            )


def check_parity(network: Network, program: ExportedProgram, sizes: Sizes) -> None:
    """The graph computes what torch does, in all trials, and on one row, where the batch is free, of sizes unseen so far.

    Raises:
        ImportFailed: `unsupported_feature`, with the error.
    """
    examples = [sizes.examples(trial) for trial in range(NUM_TRIALS if sizes.names else 1)]
    examples += [sizes.examples(UNSEEN, batch=1)] if sizes.names else []
    call = caller(program)
    for given in examples:
        wanted = _outputs(call, given)
        got = run(network, dict(zip([port.name for port in network.inputs], given, strict=True)))
        for expected, array in zip(wanted, got.values(), strict=True):
            error = _relative(_plain(expected), array)
            is_exact = expected.dtype in (torch.float32, torch.float64) or not expected.dtype.is_floating_point
            if not error <= (_TOLERANCE if is_exact else _HALF_TOLERANCE):
                shapes = ", ".join(str(list(tensor.shape)) for tensor in given)
                raise ImportFailed(
                    f"the converted network differs from the program by {error:.1e} on inputs of shape {shapes}",
                    code="unsupported_feature",
                    hint="The network may be random, or depend on values in a way that ONNX cannot say.",
                )


def _outputs(call: Any, given: list[torch.Tensor]) -> list[torch.Tensor]:
    try:
        with torch.no_grad():
            made = call([tensor.clone() for tensor in given])  # a network may change what it is given
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        shapes = ", ".join(str(list(tensor.shape)) for tensor in given)
        last = str(error).strip().splitlines()[-1][:300]
        raise ImportFailed(
            f"the program does not run on inputs of shape {shapes}: {last}", code="malformed_model", hint=_HINT
        ) from error
    return [leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, torch.Tensor)]


def _matters(program: ExportedProgram, parameter: torch.Tensor, given: list[torch.Tensor]) -> bool:
    call = caller(program)
    with torch.no_grad():
        before, kept = [tensor.clone() for tensor in _outputs(call, given)], parameter.detach().clone()
        parameter.detach().mul_(1.5).add_(0.5)
        after = _outputs(call, given)
        parameter.detach().copy_(kept)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _plain(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.float().numpy() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor.numpy())


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(a).max(initial=0.0)), 1e-12))
