"""The ONNX graph that is being built: nodes, constants under their names, and arithmetic with free sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from worker.compressor.graph.importers.aten.values import Free, Number, Tensor, Unsupported, is_number, same

OPSET = 17
_IR_VERSION = 8

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.int16: ir.DataType.INT16,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.bool: ir.DataType.BOOL,
}

#: What a node may read: a tensor, a value of the graph, whole numbers (a shape), or nothing.
Operand = Tensor | ir.Value | np.ndarray | Sequence[int | Free] | None


class Builder:
    """Collects a graph. `num_trials` is how many trials every tensor carries."""

    def __init__(self, num_trials: int) -> None:
        self.num_trials = num_trials
        self.sources: dict[str, str] = {}  # name of a constant in the graph → dotted name in the module
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._by_content: dict[tuple[Any, ...], ir.Value] = {}
        self._taken: set[str] = set()

    def input(self, name: str, trials: Sequence[torch.Tensor], shape: Sequence[int | str]) -> Tensor:
        """An input of the network; `trials` give its dtype and sizes."""
        value = ir.Value(name=name, type=ir.TensorType(DTYPES[trials[0].dtype]), shape=ir.Shape(shape))
        self._taken.add(name)
        self._inputs.append(value)
        return Tensor(tuple(trial.to("meta") for trial in trials), value)

    def weight(self, name: str, tensor: torch.Tensor) -> Tensor:
        """A parameter or buffer under its dotted name. Whole numbers and booleans are known content."""
        content = tensor.detach()
        known = None if content.is_floating_point() else content.clone()
        meta = tuple(content.to("meta") for _ in range(1)) * self.num_trials
        return Tensor(meta, make=lambda: self._named_constant(name, content), known=known, name=name)

    def known(self, content: torch.Tensor) -> Tensor:
        """A tensor whose content is known; it is put in the graph only if something reads it there."""
        trials = (content.to("meta"),) * self.num_trials
        return Tensor(trials, make=lambda: self.constant(_array(content)), known=content)

    def emit(self, op: str, *inputs: Operand, attributes: Mapping[str, Any] | None = None, outputs: int = 1) -> Any:
        """A node; its output, or a tuple of them where there are several. Attributes that are None are left out."""
        given = {key: value for key, value in (attributes or {}).items() if value is not None}
        operands = [self.operand(item) for item in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        node = ir.node(op, operands, given, num_outputs=outputs, name=self._unique(f"{op}_{len(self._nodes)}"))
        for number, value in enumerate(node.outputs):
            value.name = self._unique(f"{node.name}.out" if outputs == 1 else f"{node.name}.out{number}")
        self._nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def operand(self, item: Operand) -> ir.Value | None:
        """The value of the graph that stands for the operand."""
        if item is None or isinstance(item, ir.Value):
            return item
        if isinstance(item, Tensor):
            return item.value
        return self.constant(item) if isinstance(item, np.ndarray) else self.ints(item)

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant without a name of its own; equal ones are one."""
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._by_content:
            self._by_content[key] = self._register(self._unique("constant"), ir.tensor(array))
        return self._by_content[key]

    def scalar(self, number: Number | Free, dtype: torch.dtype) -> ir.Value:
        """A number as a tensor without axes."""
        if isinstance(number, Free):
            flat = self.emit("Reshape", number.value, np.array([], np.int64))
            whole = isinstance(number.trials[0], int)
            kind = ir.DataType.INT64 if whole else ir.DataType.FLOAT
            return flat if DTYPES[dtype] == kind else self.emit("Cast", flat, attributes={"to": int(DTYPES[dtype])})
        return self.constant(_array(torch.tensor(number, dtype=dtype)))

    def ints(self, numbers: Sequence[int | Free]) -> ir.Value:
        """Whole numbers as a tensor of one axis: a constant where none is free."""
        if not any(isinstance(number, Free) for number in numbers):
            return self.constant(np.array(numbers, np.int64).reshape(-1))
        parts = [n.value if isinstance(n, Free) else self.constant(np.array([n], np.int64)) for n in numbers]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, attributes={"axis": 0})

    def size(self, x: Tensor, axis: int) -> int | Free:
        """The length of an axis: a number, or a value of the graph where it is free."""
        axis %= x.rank
        fixed = x.size(axis)
        if fixed is not None:
            return fixed
        return Free(x.sizes(axis), self.emit("Shape", x, attributes={"start": axis, "end": axis + 1}))

    def shape(self, x: Tensor) -> list[int | Free]:
        """The length of every axis."""
        return [self.size(x, axis) for axis in range(x.rank)]

    def number(self, given: Any) -> Number | Free:
        """A number, also one that comes as a tensor of one known element."""
        if isinstance(given, Tensor) and given.known is not None and given.known.numel() == 1:
            return given.known.item()
        if is_number(given) or isinstance(given, Free):
            return given
        raise Unsupported("takes a position or size from data")

    def compute(self, op: str, function: Any, *numbers: Number | Free) -> Number | Free:
        """Arithmetic with numbers: in Python where the trials agree, else also as a node on whole numbers."""
        results = tuple(
            function(*(n.trials[trial] if isinstance(n, Free) else n for n in numbers))
            for trial in range(self.num_trials)
        )
        if (agreed := same(results)) is not None:
            return agreed
        whole = all(isinstance(result, int) for result in results)
        kind = np.int64 if whole else np.float32
        operands = [self._as_operand(number, kind) for number in numbers]
        return Free(results, self.emit(op, *operands))

    def finish(self, outputs: Sequence[tuple[str, Tensor]], names: Mapping[tuple[int, ...], str]) -> ir.Model:
        """The model with these outputs; `names` are those of free axes, by their sizes in the trials."""
        values = []
        for name, tensor in outputs:
            value = tensor.value
            if value.producer() is None or value in values:
                value = self.emit("Identity", tensor)
            value.name = self._unique(name)
            sizes = [names.get(tensor.sizes(i)) if size is None else size for i, size in enumerate(tensor.shape)]
            value.shape = ir.Shape(sizes)
            value.type = ir.TensorType(DTYPES[tensor.dtype])
            values.append(value)
        graph = ir.Graph(
            self._inputs,
            values,
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": OPSET},
            name="main",
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="featherweight")

    def _as_operand(self, number: Number | Free, kind: Any) -> ir.Value:
        if is_number(number):
            return self.constant(np.array([number], kind))
        assert isinstance(number, Free)
        if kind is np.float32 and isinstance(number.trials[0], int):
            return self.emit("Cast", number.value, attributes={"to": int(ir.DataType.FLOAT)})
        return number.value

    def _named_constant(self, name: str, content: torch.Tensor) -> ir.Value:
        unique = self._unique(name)
        self.sources[unique] = name
        return self._register(unique, ir.tensor(_array(content)))

    def _register(self, name: str, content: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(content.dtype), shape=ir.Shape(content.numpy().shape))
        value.const_value = content
        self._constants[name] = value
        return value

    def _unique(self, name: str) -> str:
        plain = re.sub(r"\s+", "_", name)
        unique, number = plain, 0
        while unique in self._taken:
            number += 1
            unique = f"{plain}.{number}"
        self._taken.add(unique)
        return unique


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    return tensor.numpy()
