"""TorchScript in (scripted, traced, frozen): through the TorchScript-based ONNX exporter, with every weight found again.

Every parameter is first filled with numbers that occur nowhere else. So no two weights are merged because they happen to
be equal, and each is found again in the exported graph by name or by value, wherever the exporter puts it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.evaluation import as_array, run, torch_dtype
from worker.compressor.graph.importers.archive import check_archive
from worker.compressor.graph.importers.layer_names import name_layers
from worker.compressor.graph.importers.onnx import try_once
from worker.compressor.graph.importers.validation import check_model
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.normalise import normalise

Signature = Sequence[Mapping[str, Any]]

_OPSET = 17
_FREE_SIZE = 64  # for an axis that is free and not the batch, while the network is looked at
#: Largest difference to the module, relative to its largest output: the gate against a wrong conversion.
_TOLERANCE = 1e-3


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
    inputs = _samples(signature, 2)
    _check_inputs(module, inputs, signature)
    with _distinct_weights(module) as truth:
        model = _export(module, inputs, signature)
        check_model(model)
        network = normalise(ir.from_proto(model))
        _restore(network, truth)
    _check_nothing_lost(network, module, truth, inputs)
    name_layers(network)
    try_once(network, signature)
    _check_parity(network, module, signature)
    return network


def _samples(signature: Signature, batch: int) -> list[torch.Tensor]:
    """One tensor per input: standard normal, or small whole numbers; free axes get `batch` and a fixed size."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for row in signature:
        sizes = [s if isinstance(s, int) else batch if axis == 0 else _FREE_SIZE for axis, s in enumerate(row["shape"])]
        dtype = torch_dtype(row.get("dtype", "float32"))
        if dtype.is_floating_point:
            tensors.append(torch.randn(sizes, generator=generator).to(dtype))
        else:
            tensors.append(torch.randint(0, 2, sizes, generator=generator).to(dtype))
    return tensors


def _check_inputs(module: Any, inputs: list[torch.Tensor], signature: Signature) -> None:
    try:
        with torch.no_grad():
            module(*inputs)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        shapes = ", ".join(f"{row['name']} {list(tensor.shape)}" for row, tensor in zip(signature, inputs, strict=True))
        last = str(error).strip().splitlines()[-1]
        raise ImportFailed(
            f"the network does not run on inputs of shape {shapes}: {last[:300]}",
            code="input_mismatch",
            hint="Correct `inputs`: name, dtype and shape of each argument, in order.",
        ) from error


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
    for name, constant in _constants(module):
        weights.true[f"CONSTANTS.{name}"] = constant
        weights.by_value.setdefault(_fingerprint(_plain(constant)), []).append(f"CONSTANTS.{name}")
    try:
        for name, tensor in live.items():
            # between 0.5 and 1.5: also a variance has to be positive
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            weights.by_value.setdefault(_fingerprint(_plain(tensor)), []).append(name)
        yield weights
    finally:
        for name, tensor in live.items():
            tensor.copy_(weights.true[name])


def _constants(module: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that freezing turned into constants, `c0`, `c1`… in order."""
    with contextlib.suppress(RuntimeError):
        mapping = module.code_with_constants[1].const_mapping
        found = [(name, value) for name, value in mapping.items() if isinstance(value, torch.Tensor)]
        return sorted(found, key=lambda item: int(item[0].lstrip("c") or 0))
    return []


def _plain(tensor: torch.Tensor) -> np.ndarray:
    like = np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    return as_array(tensor, like if tensor.dtype == torch.bfloat16 else tensor.numpy())


def _fingerprint(array: np.ndarray) -> bytes:
    return f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes()


def _export(module: Any, inputs: list[torch.Tensor], signature: Signature) -> onnx.ModelProto:
    names = [row["name"] for row in signature]
    free = {
        row["name"]: {axis: size for axis, size in enumerate(row["shape"]) if isinstance(size, str)}
        for row in signature
    }
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = _flat(module(*inputs))
            batch = next((size for row in signature for size in row["shape"][:1] if isinstance(size, str)), None)
            output_names = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
            if batch is not None:
                free |= {name: {0: batch} for name, output in zip(output_names, outputs, strict=True) if output.ndim}
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
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        raise ImportFailed(
            f"the network cannot be converted: {' '.join(lines[:2])[:400]}",
            code="unsupported_operator",
            hint="Upload the network as ONNX, or save it without this operator.",
        ) from error
    return onnx.load_model_from_string(buffer.getvalue())


def _flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _flat(part)]
    raise ImportFailed(
        f"the network returns a {type(output).__name__}", code="unsupported_output", hint="Return tensors or tuples."
    )


def _restore(network: Network, truth: _Weights) -> None:
    """Put the true values in, and note the dotted name of each."""
    for name, array in list(network.tensors.items()):
        if not is_float(array):
            continue
        source = name if name in truth.true and truth.true[name].shape == array.shape else truth.claim(array)
        if source is not None:
            network.tensors[name] = as_array(truth.true[source], array)
            network.origins[name] = Origin(source, array.shape)


def _check_nothing_lost(network: Network, module: Any, truth: _Weights, inputs: list[torch.Tensor]) -> None:
    """Every parameter that the output depends on must be in the graph."""
    found = {origin.source for origin in network.origins.values()}
    parameters = dict(module.named_parameters())
    for name in [name for name in parameters if name in truth.true and name not in found]:
        if _matters(module, parameters[name], inputs):
            raise ImportFailed(
                f"the parameter '{name}' is not found again after conversion",
                code="unsupported_feature",
                hint="Upload the network as ONNX.",
            )


def _matters(module: Any, parameter: torch.Tensor, inputs: list[torch.Tensor]) -> bool:
    with torch.no_grad():
        before, kept = _flat(module(*inputs)), parameter.detach().clone()
        parameter.detach().mul_(1.5).add_(0.5)
        after = _flat(module(*inputs))
        parameter.detach().copy_(kept)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _check_parity(network: Network, module: Any, signature: Signature) -> None:
    """The graph must compute what the module does, at two batch sizes where the batch is free."""
    free = any(isinstance(size, str) for row in signature for size in row["shape"][:1])
    for batch in (1, 3) if free else (1,):
        inputs = _samples(signature, batch)
        _check_inputs(module, inputs, signature)
        with torch.no_grad():
            wanted = _flat(module(*inputs))
        got = run(network, dict(zip([port.name for port in network.inputs], inputs, strict=True)))
        for expected, array in zip(wanted, got.values(), strict=True):
            error = _relative(expected.float().numpy(), array)
            if not error <= (_TOLERANCE if expected.dtype in (torch.float32, torch.float64) else 3e-2):
                raise ImportFailed(
                    f"the converted network differs from the module by {error:.1e} at batch {batch}",
                    code="unsupported_feature",
                    hint="The network may be random, or depend on values in a way that ONNX cannot say.",
                )


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(a).max(initial=0.0)), 1e-12))
