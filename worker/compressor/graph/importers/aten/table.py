"""The table from aten operators to ONNX, and how one call goes through it.

A lowering is a function of a `Call` and the operator's arguments by their names in torch's schema (`self` is `x`); it
knows nothing of where the call comes from. So TorchScript graphs and exported programs share the table: both hand over
an overload of `torch.ops.aten` and its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.builder import DTYPES, Builder, Operand
from worker.compressor.graph.importers.aten.values import (
    Free,
    Tensor,
    Unsupported,
    Value,
    at_trial,
    has_free,
    is_number,
    tensors_in,
)
from worker.compressor.registry import KeyedRegistry

Lowering = Callable[..., Any]

#: Lowerings by aten name, with the overload (`mean.dim`) where overloads differ.
LOWERINGS: KeyedRegistry[str, Lowering] = KeyedRegistry(
    "aten operator", "worker.compressor.graph.importers.aten.lowerings"
)

#: Arguments that change where or how fast something is computed, not what.
_WITHOUT_MEANING = {
    "memory_format", "layout", "device", "pin_memory", "non_blocking", "copy", "cudnn_enabled", "benchmark",
    "deterministic", "allow_tf32", "generator", "is_coalesced",
}  # fmt: skip
#: What is computed at import may not be larger: it would be a constant of the file.
_MOST_KNOWN = 1 << 22


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Decorator: the function lowers these operators."""

    def add(function: Lowering) -> Lowering:
        for name in names:
            LOWERINGS.add(name, function)
        return function

    return add


class Call:
    """One call of an operator, for its lowering: emits nodes, and knows what torch says the results are.

    Attributes:
        build: the graph.
        name: the operator, without its namespace.
        results: the results as torch computes them in the trials: tensors without a value.
    """

    def __init__(self, build: Builder, name: str, results: list[Tensor]) -> None:
        self.build = build
        self.name = name
        self.results = results

    @property
    def out(self) -> Tensor:
        """The first result."""
        return self.results[0]

    def emit(self, op: str, *inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or a tuple of outputs."""
        return self.build.emit(op, *inputs, attributes=attributes, outputs=outputs)

    def aten(self, name: str, *args: Value, **kwargs: Value) -> Any:
        """The result of another operator."""
        packet, _, overload = name.partition(".")
        return apply(self.build, getattr(getattr(torch.ops.aten, packet), overload or "default"), args, kwargs)

    def cast(self, x: Tensor | ir.Value, dtype: torch.dtype, source: torch.dtype | None = None) -> ir.Value:
        """The tensor in another dtype; as it is where it has that one."""
        held = x.dtype if isinstance(x, Tensor) else source
        if held == dtype:
            return x.value if isinstance(x, Tensor) else x
        if dtype not in DTYPES:
            raise Unsupported(f"makes numbers of the type {str(dtype).removeprefix('torch.')}")
        return self.emit("Cast", x, to=int(DTYPES[dtype]))

    def like(self, x: Value, dtype: torch.dtype) -> ir.Value:
        """A tensor or a number as an operand of that dtype."""
        if isinstance(x, Tensor):
            return self.cast(x, dtype)
        if is_number(x) or isinstance(x, Free):
            return self.build.scalar(x, dtype)
        raise Unsupported(f"takes a {type(x).__name__} where a number is expected")


def apply(
    build: Builder, target: torch._ops.OpOverload, args: Sequence[Value], kwargs: Mapping[str, Value] | None = None
) -> Value:
    """The result of one operator: computed now where all is known, else lowered to nodes.

    Raises:
        Unsupported: where the table has no lowering, or not for this form of the operator.
    """
    schema = target._schema
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | dict(kwargs or {})
    if schema.is_mutable:
        return _apply_in_place(build, target, given)
    outcomes = _trials(build, target, given)
    if is_number(outcomes[0]):  # a question about the tensor, such as whether it is floating point
        if all(outcome == outcomes[0] for outcome in outcomes):
            return outcomes[0]
        raise Unsupported("has a result that differs with a free size; fix the size in `inputs`")
    is_single = isinstance(outcomes[0], torch.Tensor)
    columns = [outcomes] if is_single else list(zip(*outcomes, strict=True))
    results = [Tensor(tuple(column)) for column in columns]
    inputs = tensors_in(list(given.values()))
    is_fixed = all(tensor.known is not None for tensor in inputs) and not has_free(list(given.values()))
    if is_fixed and not _is_random(target) and sum(r.trials[0].numel() for r in results) <= _MOST_KNOWN:
        outcome = _compute(build, target, given)
    else:
        outcome = _lower(_find(target), Call(build, schema.name.removeprefix("aten::"), results), given)
    values = outcome if isinstance(outcome, tuple | list) else (outcome,)
    made = [_made(value, result) for result, value in zip_longest(results, values)]
    for tensor in made:
        _link(tensor, inputs, schema.name.removeprefix("aten::"), given)
    if is_single:
        return made[0]
    return made if _returns_list(target) else tuple(made)


def _made(value: Tensor | ir.Value | None, result: Tensor) -> Tensor:
    """A result: as the lowering gives it, in memory of its own where torch says so."""
    made = Tensor(result.trials, value if isinstance(value, ir.Value) else None, make=_refuse)
    if isinstance(value, Tensor):
        made.rebind(value)
    return made


def _link(made: Tensor, inputs: list[Tensor], name: str, given: Mapping[str, Value]) -> None:
    """Note whose view the tensor is, so that a change in place of one is seen in the other."""
    for tensor in inputs:
        if made.shares(tensor):
            made.parent = tensor
            made.place = (name, tuple(given.values())[1:]) if name in ("slice", "select") else None
            tensor.views.append(made)
            return


def _refuse() -> ir.Value:
    raise Unsupported("gives a second result, which is not followed,")


def _find(target: torch._ops.OpOverload) -> Lowering:
    name, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    for key in (f"{name}.{overload}", name):
        if key in LOWERINGS:
            return LOWERINGS.get(key)
    raise Unsupported("is random" if _is_random(target) else "is not supported")


def _is_random(target: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags


def _lower(lowering: Lowering, call: Call, given: Mapping[str, Value]) -> Any:
    """Call the lowering with the arguments that it knows; others must not mean anything."""
    named = {("x" if name == "self" else name): value for name, value in given.items()}
    parameters = inspect.signature(lowering).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return lowering(call, **named)
    for name in [name for name in named if name not in parameters]:
        if name not in _WITHOUT_MEANING and named[name] not in (None, False):
            raise Unsupported(f"is not supported with `{name}`")
        del named[name]
    return lowering(call, **named)


def _trials(build: Builder, target: torch._ops.OpOverload, given: Mapping[str, Value]) -> list[Any]:
    """What torch returns in each trial."""
    return [
        _run(target, {name: at_trial(value, trial) for name, value in given.items()}, "meta")
        for trial in range(build.num_trials)
    ]


def _compute(build: Builder, target: torch._ops.OpOverload, given: Mapping[str, Value]) -> Value:
    def content(value: Value) -> Value:
        if isinstance(value, Tensor):
            return value.known
        return [content(item) for item in value] if isinstance(value, list | tuple) else value

    outcome = _run(target, {name: content(value) for name, value in given.items()}, "cpu")
    return build.known(outcome) if isinstance(outcome, torch.Tensor) else [build.known(item) for item in outcome]


def _run(target: torch._ops.OpOverload, given: Mapping[str, Any], device: str) -> Any:
    args, kwargs = [], {}
    for argument in target._schema.arguments:
        if argument.name not in given:
            continue
        value = given[argument.name]
        if "Device" in str(argument.real_type):
            value = torch.device(device)
        if "MemoryFormat" in str(argument.real_type) and value not in (None, torch.preserve_format):
            value = torch.contiguous_format
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    try:
        with torch.no_grad():
            return target(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        raise Unsupported(f"does not run: {str(error).strip().splitlines()[0][:200]}") from error


def _returns_list(target: torch._ops.OpOverload) -> bool:
    return len(target._schema.returns) == 1 and "List" in str(target._schema.returns[0].type)


def _apply_in_place(build: Builder, target: torch._ops.OpOverload, given: dict[str, Value]) -> Value:
    """The operator without its underscore; then whoever holds the tensor, or what it is a view of, holds the result."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if not name.endswith("_") or overload is None:
        raise Unsupported("changes a tensor in place in a way that is not supported")
    changed = next(iter(given.values()))
    assert isinstance(changed, Tensor)
    result = apply(build, overload, [*given.values()])
    assert isinstance(result, Tensor)
    if result.trials[0].shape != changed.trials[0].shape or result.dtype != changed.dtype:
        raise Unsupported("changes the shape of a tensor in place")
    _put(build, changed, result)
    return changed


def _put(build: Builder, changed: Tensor, result: Tensor) -> None:
    """Give the tensor the result, and all that lie in the same memory what follows from it."""
    follows = [(changed, result)]
    member = changed
    while (parent := member.parent) is not None:
        if not parent.covers(member):
            if member.place is None:
                break
            kind, where = member.place
            result = apply(build, getattr(torch.ops.aten, f"{kind}_scatter").default, [parent, result, *where])
        follows.append((parent, result))
        member = parent
    for member in changed.family():
        whole = next((content for holder, content in follows if member.covers(holder)), None)
        if whole is not None:
            member.rebind(whole)
        elif member.overlaps(changed):
            member.stale = True
