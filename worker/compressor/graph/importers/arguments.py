"""What `forward` of a TorchScript module is called with: tensors from the signature, and fixed values.

A row `{name, value}` of the signature fixes an argument; one that no row names keeps its default. Only tensors become
inputs of the network, in the order of the signature.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.evaluation import torch_dtype

Signature = Sequence[Mapping[str, Any]]

_FREE_SIZE = 64  # for an axis that is free and not the batch, while the network is looked at


@dataclass(frozen=True)
class Argument:
    """One argument of forward: the row of the signature that is its tensor, or None and a fixed value."""

    name: str
    row: Mapping[str, Any] | None
    value: Any = None
    is_default: bool = False


class Arguments:
    """All arguments of forward, in its order."""

    def __init__(self, arguments: Sequence[Argument]) -> None:
        self.all = list(arguments)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The rows that are tensors."""
        return [argument.row for argument in self.all if argument.row is not None]

    @property
    def are_tensors(self) -> bool:
        """Whether forward takes nothing but tensors."""
        return all(argument.row is not None for argument in self.all)

    @property
    def has_free_batch(self) -> bool:
        """Whether a first axis is free."""
        return any(isinstance(size, str) for row in self.rows for size in row["shape"][:1])

    @property
    def num_optional(self) -> int:
        """How many at the end keep their defaults, so that no caller has to give them."""
        return len(list(itertools.takewhile(lambda argument: argument.is_default, reversed(self.all))))

    def call(self, tensors: Sequence[Any]) -> list[Any]:
        """The arguments of one call with these tensors."""
        given = iter(tensors)
        return [argument.value if argument.row is None else next(given) for argument in self.all]

    def tree(self) -> list[dict[str, Any]]:
        """The arguments as `structure` describes them."""
        ports = iter(range(len(self.all)))
        return [{"value": a.value} if a.row is None else {"port": next(ports)} for a in self.all]

    def samples(self, batch: int, length: int = _FREE_SIZE) -> list[torch.Tensor]:
        """One tensor per row: standard normal, or small whole numbers; free axes get `batch` (the first) and `length`."""
        generator = torch.Generator().manual_seed(0)
        tensors = []
        for row in self.rows:
            sizes = [s if isinstance(s, int) else length if axis else batch for axis, s in enumerate(row["shape"])]
            dtype = torch_dtype(row.get("dtype", "float32"))
            if dtype.is_floating_point:
                tensors.append(torch.randn(sizes, generator=generator).to(dtype))
            else:
                tensors.append(torch.randint(0, 2, sizes, generator=generator).to(dtype))
        return tensors


def read_arguments(module: Any, signature: Signature) -> Arguments:
    """The arguments of the module's forward, as the signature has them.

    Raises:
        ImportFailed: `input_mismatch` where forward takes others.
    """
    schema = module.forward.schema.arguments[1:]  # the first is the module itself, whatever its author calls it
    fixed = {row["name"]: row["value"] for row in signature if "value" in row}
    tensors = [row for row in signature if "value" not in row]
    names = [argument.name for argument in schema]
    if unknown := [name for name in fixed if name not in names]:
        raise _mismatch(f"forward has no argument '{unknown[0]}'; it takes {', '.join(names)}")
    places = _places(schema, fixed, tensors)
    arguments = []
    for argument in schema:
        if argument.name in fixed:
            arguments.append(Argument(argument.name, None, fixed[argument.name]))
        elif argument.name in places:
            arguments.append(Argument(argument.name, places[argument.name]))
        elif argument.has_default_value():
            arguments.append(Argument(argument.name, None, argument.default_value, is_default=True))
        else:
            raise _mismatch(f"the argument '{argument.name}' of forward is not in the signature")
    return Arguments(arguments)


def _places(
    schema: Sequence[Any], fixed: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Which argument each tensor is: by name where all are called as arguments are, else in order."""
    free = [argument for argument in schema if argument.name not in fixed]
    called = {argument.name for argument in free}
    if all(row["name"] in called for row in tensors):
        order = [argument.name for argument in free if any(row["name"] == argument.name for row in tensors)]
        if order != [row["name"] for row in tensors]:
            raise _mismatch(f"forward takes its arguments in the order {', '.join(order)}")
        return {row["name"]: row for row in tensors}
    takers = [argument.name for argument in _tensor_like(free)]
    if len(tensors) > len(takers):
        others = [f"'{a.name}', which is {a.type}" for a in free if a.name not in takers and not a.has_default_value()]
        told = f", and {', '.join(others)}: a list, tuple or dict of tensors cannot go in" if others else ""
        taken = ", ".join(takers) or "no tensor"
        raise _mismatch(f"the signature has {len(tensors)} tensors; forward takes {taken}{told}")
    return dict(zip(takers, tensors, strict=False))


def _tensor_like(arguments: Sequence[Any]) -> Iterator[Any]:
    for argument in arguments:
        if str(argument.type) in ("Tensor", "Optional[Tensor]"):
            yield argument


def _mismatch(detail: str) -> ImportFailed:
    return ImportFailed(
        detail,
        code="input_mismatch",
        hint='Give `inputs` in the order of forward; fix an argument that is no tensor by {"name": …, "value": …}.',
    )
