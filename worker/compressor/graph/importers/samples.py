"""Which input shapes to try a network at: what the file fixes, what the signature says, else a guess per free axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.network import Dimension, Network, Port

#: Guesses for a free axis that is not the batch: picture sizes first for four axes, sequence lengths for others.
_PICTURE = (224, 64, 32, 96, 128, 256, 299, 512)
_SEQUENCE = (64, 128, 32, 16, 256, 512, 1024, 1)


def shape_candidates(
    network: Network, signature: Sequence[Mapping[str, Any]] | None
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes of one sample per input, the most likely first.

    Raises:
        ImportFailed: `input_mismatch` where the signature contradicts the file.
    """
    shapes = merge_signature(network, signature)
    picture = any(len(shape) == 4 for shape in shapes.values())
    seen = []
    for size in _PICTURE if picture else _SEQUENCE:
        chosen = {name: _fill(shape, size) for name, shape in shapes.items()}
        if chosen not in seen:
            seen.append(chosen)
            yield chosen


def merge_signature(
    network: Network, signature: Sequence[Mapping[str, Any]] | None
) -> dict[str, tuple[Dimension, ...]]:
    """Each input's shape, with the numbers of the signature where the file leaves an axis free."""
    rows = {row["name"]: row for row in signature or []}
    names = [port.name for port in network.inputs]
    if rows and set(rows) - set(names):
        if len(rows) != len(names):
            raise _mismatch(
                f"the signature names {', '.join(map(str, rows))}; the file's inputs are {', '.join(names)}"
            )
        rows = dict(zip(names, signature or [], strict=True))
    return {port.name: _merge(port, rows.get(port.name)) for port in network.inputs}


def _merge(port: Port, row: Mapping[str, Any] | None) -> tuple[Dimension, ...]:
    if row is None:
        return port.shape
    given = tuple(row["shape"])
    if not port.shape:
        return given
    fits = len(given) == len(port.shape) and all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(port.shape, given, strict=True)
    )
    if not fits or row.get("dtype", port.dtype) != port.dtype:
        raise _mismatch(
            f"the input '{port.name}' is {port.dtype} {list(port.shape)} in the file, "
            f"and {row.get('dtype', port.dtype)} {list(given)} in the signature"
        )
    return tuple(a if isinstance(a, int) else b for a, b in zip(port.shape, given, strict=True))


def _fill(shape: tuple[Dimension, ...], size: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) and d > 0 else 1 if axis == 0 else size for axis, d in enumerate(shape))


def _mismatch(detail: str) -> ImportFailed:
    return ImportFailed(detail, code="input_mismatch", hint="Give `inputs` as the file has them, or leave them out.")
