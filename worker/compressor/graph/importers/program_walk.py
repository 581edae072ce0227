"""From the graph of an exported program to ONNX: each node through the table of `importers.aten`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec, OutputKind

from worker.compressor.errors import ImportFailed
from worker.compressor.graph.importers.aten import Builder, Tensor, Unsupported, Value, apply
from worker.compressor.graph.importers.aten.builder import DTYPES
from worker.compressor.graph.importers.aten.scalars import compute
from worker.compressor.graph.importers.program_sizes import NUM_TRIALS, Sizes, axes_of
from worker.compressor.graph.structure import Structure, paths

_ARITHMETIC = {"mod": "remainder", "and_": "__and__", "or_": "__or__", "sym_not": "__not__", "sym_max": "max",
               "sym_min": "min", "sym_float": "Float", "sym_int": "trunc", "sym_sqrt": "sqrt"}  # fmt: skip
#: Checks at run time, and sizes asked of tensors.
_CHECKS = {
    "_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size",
    "_functional_assert_async", "_assert",
}  # fmt: skip
_HINT = "Export the network without this operator, or upload it as ONNX."


def convert(
    program: ExportedProgram, sizes: Sizes, structure: Structure, lines: Mapping[str, str]
) -> tuple[ir.Model, dict[str, str]]:
    """The network as ONNX, and the dotted name of each constant in the program.

    Raises:
        ImportFailed: naming the node, and its line in the user's source.
    """
    _check_stateless(program)
    walker = _Walker(program, sizes, lines)
    outputs = walker.run()
    names = list(paths(structure["output"]))
    model = walker.finish(list(zip(names, outputs, strict=True)))
    return model, walker.build.sources


def _check_stateless(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION):
            raise _has_memory(str(spec.target))


def _has_memory(name: str) -> ImportFailed:
    return ImportFailed(
        f"the network changes '{name}' at each call, so that it has a memory",
        code="unsupported_feature",
        hint="Call eval() on the module before torch.export.export, and give state in and out as tensors.",
    )


class _Walker:
    """Evaluates the nodes of a program on the values of `importers.aten`."""

    def __init__(self, program: ExportedProgram, sizes: Sizes, lines: Mapping[str, str]) -> None:
        self.build = Builder(NUM_TRIALS)
        self._program = program
        self._sizes = sizes
        self._lines = lines
        self._weights: dict[tuple[int, tuple[int, ...]], str] = {}
        self._held: dict[str, Tensor] = {}

    def run(self) -> list[Tensor]:
        """The tensors that the program gives back, in order."""
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        ports = {name: (dtype, axes) for name, dtype, axes in self._sizes.ports}
        env: dict[fx.Node, Value] = {}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                env[node] = self._input(node, specs.get(node.name), ports)
        result = self._graph(self._program.graph_module, env)
        return [tensor for tensor in self._own(result) if isinstance(tensor, Tensor)]

    def finish(self, outputs: list[tuple[str, Tensor]]) -> ir.Model:
        """The model; free sizes of outputs have the names that they have in the inputs."""
        try:
            model = self.build.finish(outputs, {})
        except Unsupported as error:
            raise ImportFailed(f"an operator {error}", code="unsupported_operator", hint=_HINT) from error
        returned = next(node for node in reversed(self._program.graph.nodes) if node.op == "output")
        traced = [value for value in self._own(returned.args[0]) if isinstance(value, fx.Node)]
        for port, node in zip(model.graph.outputs, traced, strict=True):
            port.shape = ir.Shape(self._sizes.named(axes_of(node.meta["val"])))
        return model

    def _own(self, returned: Any) -> list[Any]:
        """What the caller sees of what the graph returns; changed inputs come before it."""
        specs = self._program.graph_signature.output_specs
        return [value for spec, value in zip(specs, returned, strict=True) if spec.kind is OutputKind.USER_OUTPUT]

    def _input(
        self, node: fx.Node, spec: InputSpec | None, ports: Mapping[str, tuple[torch.dtype, list[Any]]]
    ) -> Value:
        if spec is None or spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
            raise ImportFailed(f"the input '{node.name}' is no tensor", code="unsupported_input", hint=_HINT)
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, ConstantArgument):
                return spec.arg.value
            dtype, axes = ports[node.name]
            if dtype not in DTYPES:
                raise ImportFailed(
                    f"the input '{node.name}' holds {str(dtype).removeprefix('torch.')}",
                    code="unsupported_dtype",
                    hint="Use float or int inputs.",
                )
            trials = [torch.empty(self._sizes.at(axes, t), dtype=dtype, device="meta") for t in range(NUM_TRIALS)]
            named = [size if size is not None else f"{node.name}_{i}" for i, size in enumerate(self._sizes.named(axes))]
            return self.build.input(node.name, trials, named)
        return self._weight(str(spec.target), spec.kind)

    def _weight(self, name: str, kind: InputKind) -> Tensor:
        held = self._program.state_dict.get(name, self._program.constants.get(name))
        if not isinstance(held, torch.Tensor):
            raise ImportFailed(f"the tensor '{name}' is missing", code="malformed_model", hint=_HINT)
        if held.dtype not in DTYPES:
            raise ImportFailed(f"the tensor '{name}' holds {held.dtype}", code="unsupported_dtype", hint=_HINT)
        if kind is InputKind.CONSTANT_TENSOR and (held.ndim == 0 or not held.numel()):
            return self.build.known(held.detach())
        first = self._weights.setdefault((held.data_ptr(), tuple(held.shape)), name)  # of tied ones
        self._held[name] = self.build.weight(first, held)
        return self._held[name]

    def _graph(self, module: fx.GraphModule, env: dict[fx.Node, Value]) -> Value:
        for node in module.graph.nodes:
            if node.op == "get_attr":
                env[node] = getattr(module, str(node.target))
            elif node.op == "call_function":
                try:
                    env[node] = self._node(node, env)
                except Unsupported as error:
                    raise self._refusal(node, error) from error
            elif node.op == "output":
                return self._returned(node, env)
        raise ImportFailed("the program returns nothing", code="no_outputs", hint=_HINT)

    def _returned(self, node: fx.Node, env: dict[fx.Node, Value]) -> Value:
        for source in node.all_input_nodes:
            try:
                for tensor in _flat(env[source]):
                    if isinstance(tensor, Tensor):
                        tensor.value  # noqa: B018 - here a refusal still knows its node
            except Unsupported as error:
                raise self._refusal(source, error) from error
        return fx.map_arg(node.args[0], env.__getitem__)

    def _node(self, node: fx.Node, env: dict[fx.Node, Value]) -> Value:
        args = [_filled(arg, env) for arg in node.args]
        kwargs = {name: _filled(arg, env) for name, arg in node.kwargs.items()}
        target: Any = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._region(target.name(), args)
        if not isinstance(target, torch._ops.OpOverload):
            return self._number(target.__name__, args)
        if target._schema.is_mutable:
            self._check_memory(args[0])
        name = target._schema.name.rpartition("::")[2]
        if name in _CHECKS:
            return None
        if name == "sym_size":
            return self.build.size(args[0], args[1])
        return apply(self.build, target, *_complete(target, args, kwargs))

    def _check_memory(self, changed: Value) -> None:
        """Refuse a change in place of a parameter or buffer."""
        for name, weight in self._held.items():
            if isinstance(changed, Tensor) and changed.shares(weight):
                raise _has_memory(name)

    def _region(self, name: str, args: list[Value]) -> Value:
        """A part of the graph that runs under a setting; gradients mean nothing here, mixed precision would."""
        if name == "wrap_with_set_grad_enabled":
            _, module, *inputs = args
        elif name == "wrap_with_autocast" and not args[2]:
            _, _, _, _, module, *inputs = args
        else:
            raise Unsupported("is not supported")
        ports = [node for node in module.graph.nodes if node.op == "placeholder"]
        return self._graph(module, dict(zip(ports, inputs, strict=True)))

    def _number(self, name: str, args: list[Value]) -> Value:
        if name == "getitem":
            return args[0][args[1]]
        return compute(self.build, _ARITHMETIC.get(name, name), args)

    def _refusal(self, node: fx.Node, error: Unsupported) -> ImportFailed:
        line = f" ({self._lines[node.name]})" if node.name in self._lines else ""
        name = getattr(node.target, "_schema", None)
        kind = name.name if name is not None else getattr(node.target, "__name__", str(node.target))
        return ImportFailed(
            f"node '{node.name}'{line}: the operator {kind} {str(error).removesuffix(',')}",
            code="unsupported_operator",
            hint=_HINT,
        )


def _complete(
    target: torch._ops.OpOverload, args: list[Value], kwargs: dict[str, Value]
) -> tuple[list[Value], dict[str, Value]]:
    """The arguments with those that the file leaves out because they have their defaults."""
    absent = target._schema.arguments[len(args) :]
    return args, {a.name: a.default_value for a in absent if a.has_default_value()} | kwargs


def _filled(arg: Any, env: Mapping[fx.Node, Value]) -> Value:
    """The argument with values in place of nodes; containers as plain lists and tuples."""
    if isinstance(arg, fx.Node):
        return env[arg]
    if isinstance(arg, list):
        return [_filled(item, env) for item in arg]
    if isinstance(arg, tuple):
        return tuple(_filled(item, env) for item in arg)
    return arg


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]
