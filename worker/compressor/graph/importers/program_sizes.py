"""The free sizes of an exported program: their names, sizes to try them at, and how shapes follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.programs import user_inputs

NUM_TRIALS = 2
#: A set of sizes that is no trial: what was concluded from the trials is judged by it.
UNSEEN = NUM_TRIALS
#: Where the file does not say at which size it was exported.
_USUAL = 4


class Sizes:
    """What is free in a program. Each free size has one number per trial, different from trial to trial, and one unseen.

    `ports` are the tensors that go in: (name, dtype, axes), an axis being a whole number or an expression of sympy.
    """

    def __init__(self, program: ExportedProgram) -> None:
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        self.ports: list[tuple[str, torch.dtype, list[Any]]] = []
        for spec in user_inputs(program):
            if isinstance(spec.arg, TensorArgument):
                value = values[spec.arg.name]
                if not isinstance(value, torch.Tensor):
                    raise _unsupported(f"the input '{spec.arg.name}' is not a tensor")
                self.ports.append((spec.arg.name, value.dtype, axes_of(value)))
        self.names: dict[Any, str] = {}
        self._trials: dict[Any, tuple[int, ...]] = {}
        hints = _hints(values.values())
        for symbol, port, axis in self._free():
            if symbol not in self.names:
                self.names[symbol] = self._name(port, axis)
                self._trials[symbol] = self._choose(symbol, hints.get(symbol, _USUAL), program)

    def at(self, axes: Sequence[Any], trial: int) -> list[int]:
        """A shape in one trial."""
        return [axis if isinstance(axis, int) else self._number(axis, trial) for axis in axes]

    def named(self, axes: Sequence[Any]) -> list[int | str | None]:
        """A shape with names for free sizes; None where one is more than a free size."""
        return [axis if isinstance(axis, int) else self.names.get(axis) for axis in axes]

    def signature(self) -> list[dict[str, Any]]:
        """The inputs as the file has them, free axes but the first at the size at which they were exported."""
        return [
            {
                "name": name,
                "dtype": str(dtype).removeprefix("torch."),
                "shape": [
                    named if axis == 0 and isinstance(named, str) else size
                    for axis, (named, size) in enumerate(zip(self.named(axes), self.at(axes, 0), strict=True))
                ],
            }
            for name, dtype, axes in self.ports
        ]

    def examples(self, trial: int, batch: int | None = None) -> list[torch.Tensor]:
        """Random inputs in a trial's sizes, or with `batch` rows where the first axis is free by itself."""
        generator = torch.Generator().manual_seed(trial)
        tensors = []
        for _, dtype, axes in self.ports:
            sizes = self.at(axes, trial)
            if batch is not None and axes and axes[0] in self.names:
                sizes[0] = batch
            plain = torch.randn(sizes, generator=generator)
            tensors.append(
                plain.to(dtype)
                if dtype.is_floating_point
                else torch.randint(0, 2, sizes, generator=generator).to(dtype)
            )
        return tensors

    def _free(self) -> Iterator[tuple[Any, str, int]]:
        for name, _, axes in self.ports:
            for axis, size in enumerate(axes):
                for symbol in () if isinstance(size, int) else sorted(size.free_symbols, key=str):
                    yield symbol, name, axis

    def _name(self, port: str, axis: int) -> str:
        taken = set(self.names.values())
        wanted = "batch" if axis == 0 else f"dim_{axis}"
        return wanted if wanted not in taken else f"{port}_{axis}"

    def _choose(self, symbol: Any, hint: int, program: ExportedProgram) -> tuple[int, ...]:
        """Sizes around the one at which the program was exported, that no other free size has, far enough apart to tell
        `size // 2` and the like from constants.
        """
        bounds = program.range_constraints.get(symbol)
        low = max(2, int(bounds.lower)) if bounds is not None and bounds.lower.is_Integer else 2
        high = int(bounds.upper) if bounds is not None and bounds.upper.is_Integer else 1 << 30
        taken = {size for sizes in self._trials.values() for size in sizes[:NUM_TRIALS]}
        hint = max(hint, 2)
        around = [hint + step for distance in range(64) for step in ({distance, -distance})]
        wanted = dict.fromkeys([hint, hint + hint // 2 + 1, *around])
        trials = [size for size in wanted if low <= size <= high and size not in taken][:NUM_TRIALS]
        if len(trials) < NUM_TRIALS:
            raise _unsupported(f"the free size {self.names[symbol]} has too few values")
        unseen = [size for size in (2 * hint + 3, *around) if low <= size <= high and size not in trials]
        return (*trials, *unseen[:1])

    def _number(self, expression: Any, trial: int) -> int:
        return int(
            expression.subs({symbol: sizes[min(trial, len(sizes) - 1)] for symbol, sizes in self._trials.items()})
        )


def axes_of(value: torch.Tensor) -> list[Any]:
    """The axes of a traced tensor: whole numbers, and expressions of free sizes."""
    return [axis if isinstance(axis, int) else axis.node.expr for axis in value.shape]


def _hints(values: Any) -> dict[Any, int]:
    """The size of each symbol in the example that the program was exported with."""
    found: dict[Any, int] = {}
    for value in values:
        for axis in value.shape if isinstance(value, torch.Tensor) else ():
            if not isinstance(axis, int):
                known = getattr(axis.node.shape_env, "backed_var_to_val", {})
                found.update({symbol: int(size) for symbol, size in known.items()})
    return found


def _unsupported(detail: str) -> ImportFailed:
    return ImportFailed(
        detail, code="unsupported_input", hint="Export the network with tensors as inputs, and free sizes of any value."
    )
