"""Calling an exported program with its tensors in order, whatever containers it was exported with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec
from torch.utils import _pytree as pytree

Call = Callable[[Sequence[torch.Tensor]], Any]


def user_inputs(program: ExportedProgram) -> list[InputSpec]:
    """What a caller hands over, flat and in order: tensors, and constants that are part of the call."""
    return [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]


def caller(program: ExportedProgram) -> Call:
    """A function of the tensors in order: puts the program's constants and containers around them, and runs it."""
    module = program.module(check_guards=False)  # guards are code from the file
    specs, containers = user_inputs(program), program.call_spec.in_spec

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        given = iter(tensors)
        flat = [spec.arg.value if isinstance(spec.arg, ConstantArgument) else next(given) for spec in specs]
        args, kwargs = pytree.tree_unflatten(flat, containers)
        return module(*args, **kwargs)

    return call
