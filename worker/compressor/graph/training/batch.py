"""A free batch for training where the file fixes one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import run, torch_dtype
from worker.compressor.graph.network import Network
from worker.compressor.graph.training.batch_edits import Builder
from worker.compressor.graph.training.relaxation import Relaxation, relax

_PARTS = 2
_MORE = 2
_TOLERANCE = 1e-4
_FAILURES = (RuntimeError, IndexError, ValueError, TypeError, KeyError, ArithmeticError, ImportFailed)

Call = Callable[..., tuple[torch.Tensor, ...]]
Feeds = dict[str, torch.Tensor]


def has_free_batch(network: Network) -> bool:
    """Whether the first axis of every input is free in the file."""
    return fixed_batch(network) is None


def fixed_batch(network: Network) -> int | None:
    """The number of rows that the file fixes in the first axis of an input; None where it is free in all of them."""
    sizes = [port.shape[0] for port in network.inputs if port.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def in_pieces(call: Call, size: int) -> Call:
    """The call for any number of rows, `size` at a time, the last ones filled up: for a batch that cannot be freed."""

    def pieced(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(inputs[0])
        pieces = []
        for at in range(0, count, size):
            rows = torch.arange(at, at + size, device=inputs[0].device).clamp(max=count - 1)
            outputs = call(*(value[rows] for value in inputs))
            missing = max(at + size - count, 0)
            pieces.append([output[: len(output) - len(output) * missing // size] for output in outputs])
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))

    return pieced


def free_batch(network: Network) -> Network | None:
    """A copy that takes any number of rows, proven to give for each what the file gives; None where there is none.

    Tensor names are those of `network`, so weights trained in the copy go back into it by name. The file's own batch
    is not changed by this: export `network`, not the copy.
    """
    batch = fixed_batch(network)
    if batch is None or any(shape[:1] != (batch,) for shape in network.sample_shapes.values()):
        return None
    for is_plain in (False, True):
        try:
            feeds = _feeds(network, _PARTS * batch, is_plain)
            found = relax(network, [_rows(feeds, at, batch) for at in range(0, _PARTS * batch, batch)], batch)
        except _FAILURES:  # these whole numbers are none that the network takes
            continue
        if found is None:
            return None
        result = _edited(network, found, batch)
        return result if _is_per_sample(network, result, _feeds(network, batch + _MORE, is_plain), batch) else None
    return None


def _feeds(network: Network, num_rows: int, is_plain: bool) -> Feeds:
    """Seeded noise; whole numbers are 0 and 1, or (`is_plain`) 0."""
    generator = torch.Generator().manual_seed(0)
    feeds = {}
    for port in network.inputs:
        shape = (num_rows, *network.sample_shapes[port.name][1:])
        dtype = torch_dtype(port.dtype)
        if dtype.is_floating_point:
            feeds[port.name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            feeds[port.name] = torch.randint(0, 1 if is_plain else 2, shape, generator=generator).to(dtype)
    return feeds


def _rows(feeds: Feeds, start: int, count: int) -> Feeds:
    """So many rows from there on; the last one again where there are no more."""
    return {name: value[torch.arange(start, start + count).clamp(max=len(value) - 1)] for name, value in feeds.items()}


def _edited(network: Network, found: Relaxation, batch: int) -> Network:
    result = network.copy()
    nodes = list(result.graph)
    builder = Builder(result, found.shapes)
    for node in nodes:
        for edit in found.edits.get(node.outputs[0].name or "", ()):
            builder.place = node
            value = node.inputs[edit.slot]
            assert value is not None
            node.replace_input_with(edit.slot, edit.build(builder, value))
    builder.place = None
    for index, value in enumerate(result.graph.outputs):
        if value.name in found.outputs:
            name, made = value.name, found.outputs[value.name].build(builder, value)
            made.type, made.shape = value.type, value.shape
            result.graph.outputs[index] = made
            value.name, made.name = result.unique_name(f"{name}.own"), name
    for value in [*result.graph.inputs, *result.graph.outputs]:
        if value.shape is not None and len(value.shape):
            first = "batch" if value.shape[0] == batch else None
            value.shape = ir.Shape([first, *list(value.shape)[1:]])
    result.changed()
    return result


def _is_per_sample(network: Network, freed: Network, feeds: Feeds, batch: int) -> bool:
    """Whether the copy gives all rows at once what the network gives them in batches of its own."""
    try:
        together = run(freed, feeds)
    except _FAILURES:
        return False
    num_rows = batch + _MORE
    parts = [run(network, _rows(feeds, at, batch)) for at in range(0, num_rows, batch)]
    return all(
        _is_equal(np.concatenate([part[name] for part in parts])[: len(value)], value, num_rows)
        for name, value in together.items()
    )


def _is_equal(a: np.ndarray, b: np.ndarray, num_rows: int) -> bool:
    if a.shape != b.shape or len(b) % num_rows:
        return False
    wide = a.astype(np.float64)
    scale = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)) or 1.0
    return bool(np.allclose(wide, b.astype(np.float64), rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True))
