"""TorchScript in by the first route: torch's TorchScript-based ONNX exporter, with every weight found again.

Every parameter is first filled with numbers that occur nowhere else. So no two weights are merged because they happen to
be equal, and each is found again in the exported graph by name or by value, wherever the exporter puts it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.evaluation import as_array
from worker.compressor.graph.importers.validation import check_model
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.normalise import normalise

_OPSET = 17
_MOST_DRAWS = 20  # of numbers for one tensor, until no other has them


def export(module: Any, rows: Sequence[Mapping[str, Any]], inputs: list[torch.Tensor], num_outputs: int) -> Network:
    """The network with the module's weights, each with its dotted name as its origin.

    Raises:
        ImportFailed: where the exporter does not take the module.
    """
    with _distinct_weights(module) as truth:
        model = _export(module, rows, inputs, num_outputs)
        check_model(model)
        network = normalise(ir.from_proto(model))
        _restore(network, truth)
    return network


class _Weights:
    """The module's float tensors by dotted name: true values, and the numbers that stand for them in the export."""

    def __init__(self) -> None:
        self.true: dict[str, torch.Tensor] = {}
        self.by_value: dict[bytes, list[str]] = {}

    def claim(self, array: np.ndarray) -> str | None:
        """The name of the tensor with this content; equal ones in order of their names' appearance, the last stays."""
        names = self.by_value.get(_fingerprint(array))
        return None if not names else names.pop(0) if len(names) > 1 else names[0]


@contextlib.contextmanager
def _distinct_weights(module: Any) -> Iterator[_Weights]:
    """Fill every float parameter and buffer with numbers of its own; the true ones come back at the end."""
    weights = _Weights()
    live: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(20)
    seen: dict[int, str] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue  # tied tensors share their memory, and the first name stands for them
        seen[tensor.data_ptr()] = name
        live[name], weights.true[name] = tensor.detach(), tensor.detach().clone()
    for name, constant in constants_of(module):
        weights.true[name] = constant
        weights.by_value.setdefault(_fingerprint(_plain(constant)), []).append(name)
    try:
        for name, tensor in live.items():
            _fill(tensor, weights.by_value, generator)
            weights.by_value.setdefault(_fingerprint(_plain(tensor)), []).append(name)
        yield weights
    finally:
        for name, tensor in live.items():
            tensor.copy_(weights.true[name])


def _fill(tensor: torch.Tensor, taken: Mapping[bytes, Any], generator: torch.Generator) -> None:
    """Numbers between 0.5 and 1.5 (also a variance has to be positive); again where a small tensor drew those of another.

    Half precision has few numbers, but a tensor as a whole has enough of them.
    """
    for _ in range(_MOST_DRAWS):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        if _fingerprint(_plain(tensor)) not in taken:
            return


def constants_of(module: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that freezing turned into constants, `CONSTANTS.c0`, `CONSTANTS.c1`… in order."""
    with contextlib.suppress(RuntimeError):
        mapping = module.code_with_constants[1].const_mapping
        found = [(name, value) for name, value in mapping.items() if isinstance(value, torch.Tensor)]
        found.sort(key=lambda item: int(item[0].lstrip("c") or 0))
        return [(f"CONSTANTS.{name}", value) for name, value in found]
    return []


def _plain(tensor: torch.Tensor) -> np.ndarray:
    like = np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    return as_array(tensor, like if tensor.dtype == torch.bfloat16 else tensor.numpy())


def _fingerprint(array: np.ndarray) -> bytes:
    return f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()


def _export(
    module: Any, rows: Sequence[Mapping[str, Any]], inputs: list[torch.Tensor], num_outputs: int
) -> onnx.ModelProto:
    names = [row["name"] for row in rows]
    free = {
        row["name"]: {axis: size for axis, size in enumerate(row["shape"]) if isinstance(size, str)} for row in rows
    }
    batch = next((size for row in rows for size in row["shape"][:1] if isinstance(size, str)), None)
    output_names = ["output"] if num_outputs == 1 else [f"output_{i}" for i in range(num_outputs)]
    if batch is not None:
        free |= {name: {0: batch} for name in output_names}
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(inputs),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # TRAINING is silently wrong on scripted BatchNorm
                do_constant_folding=False,  # folding loses the names of the weights
                opset_version=_OPSET,
                input_names=names,
                output_names=output_names,
                dynamic_axes=free,
            )
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, torch.onnx.OnnxExporterError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        raise ImportFailed(
            f"the network cannot be converted: {' '.join(lines[:2])[:400]}",
            code="unsupported_operator",
            hint="Upload the network as ONNX, or save it without this operator.",
        ) from error
    return onnx.load_model_from_string(buffer.getvalue())


def _restore(network: Network, truth: _Weights) -> None:
    """Put the true values in, and note the dotted name of each."""
    for name, array in list(network.tensors.items()):
        if not is_float(array):
            continue
        source = name if name in truth.true and truth.true[name].shape == array.shape else truth.claim(array)
        if source is not None:
            network.tensors[name] = as_array(truth.true[source], array)
            network.origins[name] = Origin(source, array.shape)
