"""TorchScript in by the second route: our own walk over `module.inlined_graph`, with the table of `importers.aten`.

Attributes are followed to the exact dotted names of parameters. Branches and loops are decided while walking, by what
the inputs' types, values and fixed sizes say; one that depends on data, or differs with a free size, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.aten import Builder, Free, Tensor, Unsupported, Value, apply
from worker.compressor.graph.importers.aten.scalars import compute, is_arithmetic
from worker.compressor.graph.importers.aten.values import same, tensors_in
from worker.compressor.graph.importers.inlined.enumerations import announce
from worker.compressor.graph.importers.inlined.primitives import ON_VALUES, PRIMITIVES, Module, dtype_of

_MOST_TURNS = 10_000


class Walker:
    """Evaluates a TorchScript graph on the values of `importers.aten`."""

    def __init__(
        self, build: Builder, weights: Mapping[tuple[int, tuple[int, ...]], str], parameters: AbstractSet[str]
    ) -> None:
        self.build: Builder = build
        self._names = weights  # by address and shape, the first of tied ones
        self._parameters = parameters
        self._made: dict[str, Tensor] = {}
        self._env: dict[Any, Value] = {}
        self._at = ""  # the line of the last node that has one

    def run(self, module: Any, inputs: Sequence[Value]) -> Value:
        """What forward returns for these inputs.

        Raises:
            ImportFailed: naming the operator and its line in the source.
        """
        graph = module.inlined_graph
        ports = list(graph.inputs())
        self._env = dict(zip((port.unique() for port in ports), [Module(module, ""), *inputs], strict=True))
        result = self._block(graph)[0]
        try:
            for tensor in tensors_in(result):
                tensor.value  # noqa: B018 - here a refusal still knows its line
        except Unsupported as error:
            raise self._refusal(graph.return_node(), error) from error
        return result

    def _block(self, block: Any) -> list[Value]:
        for node in block.nodes():
            self._at = _line(node) or self._at
            try:
                results = self._node(node)
            except Unsupported as error:
                raise self._refusal(node, error) from error
            except (TypeError, LookupError, AttributeError) as error:
                raise self._refusal(node, Unsupported(f"is used in a way that is not followed: {error}")) from error
            for output, result in zip(node.outputs(), results, strict=True):
                self._env[output.unique()] = result
        outputs = block.outputs() if hasattr(block, "outputs") else block.returnNode().inputs()
        return [self._env[output.unique()] for output in outputs]

    def _node(self, node: Any) -> Sequence[Value]:
        kind = node.kind()
        if kind == "prim::If":
            return self._branch(node)
        if kind == "prim::Loop":
            return self._loop(node)
        args = [self._env[value.unique()] for value in node.inputs()]
        if kind in PRIMITIVES:
            return PRIMITIVES[kind](self, node, args)
        if not kind.startswith("aten::"):
            raise Unsupported("is not supported")
        result = self._aten(node, kind.removeprefix("aten::"), args)
        return [result] if node.outputsSize() == 1 else list(result) if node.outputsSize() else []

    def _branch(self, node: Any) -> Sequence[Value]:
        condition = self._decided(self._env[next(node.inputs()).unique()])
        first, second = node.blocks()
        return self._block(first if condition else second)

    def _loop(self, node: Any) -> Sequence[Value]:
        most, going, *carried = [self._env[value.unique()] for value in node.inputs()]
        if not isinstance(most, int):
            raise Unsupported("turns as often as a free size says; fix the size in `inputs`")
        body = next(node.blocks())
        ports = list(body.inputs())
        turn = 0
        while turn < most and self._decided(going):
            if turn >= _MOST_TURNS:
                raise Unsupported(f"turns more than {_MOST_TURNS} times")
            self._env.update(zip((port.unique() for port in ports), [turn, *carried], strict=True))
            going, *carried = self._block(body)
            turn += 1
        return carried

    def _decided(self, value: Value) -> bool:
        if isinstance(value, Free):
            agreed = same(tuple(bool(number) for number in value.trials))
            if agreed is not None:
                return bool(agreed)
            raise Unsupported("decides by a free size; fix the size in `inputs`")
        if isinstance(value, Tensor):
            if value.known is not None:
                return bool(value.known)
            raise Unsupported("decides by data")
        return bool(value)

    def _aten(self, node: Any, name: str, args: list[Value]) -> Value:
        if name in ON_VALUES and (outcome := ON_VALUES[name](self.build, *args)) is not NotImplemented:
            return outcome
        numbers = _as_numbers(args)
        if is_arithmetic(name, numbers):
            return compute(self.build, name, numbers)
        schema = torch._C.parse_schema(node.schema())
        packet = getattr(torch.ops.aten, name)
        target = getattr(packet, schema.overload_name or "default")
        for index, argument in enumerate(schema.arguments[: len(args)]):
            if "ScalarType" in str(argument.real_type) and isinstance(args[index], int):
                args[index] = dtype_of(args[index])
        return apply(self.build, target, args)

    def _refusal(self, node: Any, error: Unsupported) -> ImportFailed:
        return ImportFailed(
            f"the operator {node.kind()} {str(error).removesuffix(',')}" + (f" ({self._at})" if self._at else ""),
            code="unsupported_operator",
            hint="Save the network without this operator, or upload it as ONNX.",
        )

    def constant(self, node: Any) -> Value:
        """The value of a `prim::Constant`."""
        output = node.output()
        if not node.hasAttribute("value"):
            return None
        announce(output.type())
        return self.attribute(output.toIValue(), "CONSTANTS")

    def attribute(self, value: Any, path: str) -> Value:
        """A value that hangs on a module: tensors become weights under their dotted name, once each."""
        if isinstance(value, torch.Tensor):
            name = self._names.get(address(value), path)
            is_number = value.ndim == 0 and name not in self._parameters
            if is_number or (name.startswith("CONSTANTS") and name == path) or not value.numel():
                return self.build.known(value.detach())
            if name not in self._made:
                self._made[name] = self.build.weight(name, value)
            held = self._made[name]
            return Tensor(held.trials, make=lambda: held.value, known=held.known, name=name)
        if isinstance(value, torch.jit.ScriptModule | torch.nn.Module | torch._C.ScriptModule):
            return Module(value, path)
        if isinstance(value, list | tuple):
            items = [self.attribute(item, f"{path}.{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self.attribute(item, f"{path}.{key}") for key, item in value.items()}
        return value


def address(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """What tells one weight from another: where it lies, and its shape."""
    return tensor.data_ptr(), tuple(tensor.shape)


def _as_numbers(args: list[Value]) -> list[Value]:
    """The arguments, with constants of no axis as numbers where sizes are among them: tracing records both as tensors."""
    if not any(isinstance(arg, Free | int) and not isinstance(arg, bool) for arg in args[:2]):
        return args
    return [_as_number(arg) if isinstance(arg, Tensor) else arg for arg in args]


def _as_number(x: Tensor) -> Value:
    return x.known.item() if x.known is not None and x.rank == 0 and x.name is None else x


def _line(node: Any) -> str:
    """File and line of the source, the author's own where the file has both; empty where it has none."""
    lines = [line.strip() for line in node.sourceRange().splitlines() if "File " in line and '""' not in line]
    own = [line for line in lines if not line.startswith("Serialized")] or lines
    return own[-1].removeprefix("Serialized").strip().removeprefix("File ") if own else ""
