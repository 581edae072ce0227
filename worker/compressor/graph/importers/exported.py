"""TorchScript in by the first route: torch's TorchScript-based ONNX exporter, with every weight found again.

Every parameter is first marked with numbers that occur nowhere else. So no two weights are merged because they happen to
be equal, and each is found again in the exported graph by name or by value, wherever the exporter puts it. The network's
tensors are the module's own memory: the exporter writes the weights themselves only where it cannot do without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.counts import is_float
from worker.compressor.graph.importers.validation import check_model
from worker.compressor.graph.network import Network, Origin
from worker.compressor.graph.normalise import normalise

_OPSET = 17
_MARKED = 64  # elements of a tensor that are a mark
_MOST_DRAWS = 20  # of numbers for one tensor, until no other has them


def export(module: Any, rows: Sequence[Mapping[str, Any]], inputs: list[torch.Tensor], num_outputs: int) -> Network:
    """The network with the module's weights (in its memory), each with its dotted name as its origin.

    Raises:
        ImportFailed: where the exporter does not take the module.
    """
    with _marked_weights(module) as weights:
        model = _export(module, rows, inputs, num_outputs, with_weights=False)
        held = _held(model, rows, weights)
        if held is None:
            model, held = _export(module, rows, inputs, num_outputs, with_weights=True), []
        check_model(model)
        network = normalise(_with_weights(model, held, weights))
        _restore(network, weights)
    return network


class _Weights:
    """The module's tensors by dotted name, of tied ones the `first` name, and names by content while they are marked."""

    def __init__(self, module: Any) -> None:
        self.live = {name: t.detach() for name, t in [*module.named_parameters(), *module.named_buffers()]}
        self.by_value: dict[bytes, list[str]] = {}
        places: dict[Any, str] = {}
        self.first = {name: places.setdefault((t.data_ptr(), t.shape), name) for name, t in self.live.items()}

    def claim(self, array: np.ndarray) -> str | None:
        """The name of the tensor with this content; equal ones in order of their names' appearance, the last stays."""
        names = self.by_value.get(_fingerprint(array))
        return None if not names else names.pop(0) if len(names) > 1 else names[0]


@contextlib.contextmanager
def _marked_weights(module: Any) -> Iterator[_Weights]:
    """Give every float parameter and buffer a mark of its own; the true numbers come back at the end."""
    weights = _Weights(module)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    generator = torch.Generator().manual_seed(20)
    seen: set[int] = set()
    for name, constant in constants_of(module):
        weights.live[name] = constant.detach()
        weights.by_value.setdefault(_fingerprint(_shared(constant)), []).append(name)
    try:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or tensor.data_ptr() in seen:
                continue  # tied tensors share their memory, and the first name stands for them
            seen.add(tensor.data_ptr())
            part = _markable(tensor.detach())
            kept.append((part, part.clone()))
            mark = _mark(tensor, part, weights.by_value, generator)
            weights.by_value.setdefault(mark, []).append(name)
        yield weights
    finally:
        for part, true in reversed(kept):  # views of one memory may overlap
            part.copy_(true)


def _markable(tensor: torch.Tensor) -> torch.Tensor:
    """The first elements along the longest axis, so that little has to be kept."""
    if not tensor.ndim:
        return tensor
    longest = max(range(tensor.ndim), key=lambda axis: tensor.shape[axis])
    return tensor[tuple(slice(_MARKED) if axis == longest else slice(1) for axis in range(tensor.ndim))]


def _mark(tensor: torch.Tensor, part: torch.Tensor, taken: Mapping[bytes, Any], generator: torch.Generator) -> bytes:
    """Numbers between 0.5 and 1.5 (also a variance has to be positive); again where a tensor then equals another.

    Half precision has few numbers, but several of them together are enough.
    """
    for _ in range(_MOST_DRAWS):
        part.copy_(torch.rand(part.shape, generator=generator) + 0.5)
        found = _fingerprint(_shared(tensor))
        if found not in taken:
            break
    return found


def constants_of(module: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors that freezing turned into constants, `CONSTANTS.c0`, `CONSTANTS.c1`… in order."""
    with contextlib.suppress(RuntimeError):
        mapping = module.code_with_constants[1].const_mapping
        found = [(name, value) for name, value in mapping.items() if isinstance(value, torch.Tensor)]
        found.sort(key=lambda item: int(item[0].lstrip("c") or 0))
        return [(f"CONSTANTS.{name}", value) for name, value in found]
    return []


def _shared(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own memory as an array (bfloat16 included)."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    return tensor.numpy()


def _fingerprint(array: np.ndarray) -> bytes:
    content = hashlib.blake2b(f"{array.shape}{array.dtype}".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.digest()


def _export(
    module: Any, rows: Sequence[Mapping[str, Any]], inputs: list[torch.Tensor], num_outputs: int, *, with_weights: bool
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
        with warnings.catch_warnings(), torch.no_grad():  # it also runs the module
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(inputs),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,  # TRAINING is silently wrong on scripted BatchNorm
                do_constant_folding=False,  # folding loses the names of the weights
                export_params=with_weights,
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


def _held(model: onnx.ModelProto, rows: Sequence[Mapping[str, Any]], weights: _Weights) -> list[str] | None:
    """The inputs of a model without weights that are tensors of the module as they are; None where others are missing."""
    names = {row["name"] for row in rows}
    held = []
    for port in model.graph.input:
        live, shape = weights.live.get(port.name), [size.dim_value for size in port.type.tensor_type.shape.dim]
        if live is not None and port.name not in names and list(live.shape) == shape:
            held.append(port.name)
        elif port.name not in names:
            return None
    return held


def _with_weights(proto: onnx.ModelProto, held: Collection[str], weights: _Weights) -> ir.Model:
    """The model with the module's tensors for the inputs that they are."""
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in held]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(_shared(weights.live[value.name or ""]), name=value.name)
        model.graph.register_initializer(value)
    return model


def _restore(network: Network, weights: _Weights) -> None:
    """Put the module's tensors in, and note the dotted name of each."""
    for name, array in list(network.tensors.items()):
        if not is_float(array):
            continue
        is_named = name in weights.live and tuple(weights.live[name].shape) == array.shape
        source = weights.first.get(name, name) if is_named else weights.claim(array)
        if source is not None:
            network.tensors[name] = _shared(weights.live[source])
            network.origins[name] = Origin(source, array.shape)
