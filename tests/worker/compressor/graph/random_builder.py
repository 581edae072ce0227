"""An ONNX graph that grows by a step at a time; see `random_nets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
WIDTHS = (4, 8, 12, 16, 24)


class Step(NamedTuple):
    """One operator, and the numbers that choose its inputs and sizes."""

    op: str
    a: int
    b: int
    c: int

    def __str__(self) -> str:
        return f"{self.op}({self.a}, {self.b}, {self.c})"


class Builder:
    """An ONNX graph that grows; `values` holds (name, shape without N), the latest last."""

    def __init__(self, rng: np.random.Generator, opset: int, start: Shape) -> None:
        self.rng, self.opset = rng, opset
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.values: list[tuple[str, Shape]] = [("x", start)]
        self.start = start
        self.read: set[str] = set()

    def pick(self, number: int, fits: Callable[[Shape], bool]) -> tuple[str, Shape] | None:
        """A value whose shape fits, recent ones for small numbers."""
        found = [value for value in reversed(self.values) if fits(value[1])]
        return found[number % len(found)] if found else None

    def weight(self, *shape: int, scale: float | None = None, offset: float = 0.0) -> str:
        """A random constant; standard deviation 1/sqrt(fan in) unless given."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        array = self.rng.standard_normal(shape) * (fan_in**-0.5 if scale is None else scale) + offset
        return self.constant(array.astype(np.float32))

    def constant(self, array: np.ndarray | np.generic | Sequence[int]) -> str:
        name = f"w{len(self.tensors)}"
        made = np.array(array, np.int64) if isinstance(array, list | tuple) else np.asarray(array)
        self.tensors.append(numpy_helper.from_array(made, name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """Add a node; its first output's name, of which the others are made by `.k`."""
        name = f"{op.lower()}{len(self.nodes)}"
        names = [name] + [f"{name}.{k}" for k in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"/{name}", **attributes))
        self.read.update(inputs)
        return name

    def add(self, name: str, shape: Shape) -> None:
        self.values.append((name, shape))

    def reshape(self, x: str, *sizes: int) -> str:
        return self.node("Reshape", x, self.constant(sizes))

    def linear(self, x: str, width_in: int, width_out: int) -> str:
        made = self.node("MatMul", x, self.weight(width_in, width_out, scale=width_in**-0.5))
        return self.node("Add", made, self.weight(width_out, scale=0.2))

    def convolution(self, x: str, out: int, per_group: int, kernel: int, **attributes: object) -> str:
        pads = [kernel // 2] * 4
        return self.node(
            "Conv", x, self.weight(out, per_group, kernel, kernel), self.weight(out, scale=0.2),
            kernel_shape=[kernel, kernel], pads=pads, **attributes,
        )  # fmt: skip

    def mean(self, x: str, axis: int, *, keep: bool) -> str:
        if self.opset < 18:
            return self.node("ReduceMean", x, axes=[axis], keepdims=int(keep))
        return self.node("ReduceMean", x, self.constant([axis]), keepdims=int(keep))

    def finish(self, steps: Sequence[Step]) -> onnx.ModelProto:
        """Heads on up to two values that nothing reads yet."""
        loose = [value for value in self.values if value[0] not in self.read][-2:]
        outputs = []
        for number, (name, shape) in enumerate(loose):
            flat, width = name, shape[-1]
            if len(shape) > 1:
                flat, width = self.node("Flatten", name, axis=1), int(np.prod(shape))
            made = self.node("Gemm", flat, self.weight(5, width), self.weight(5, scale=0.2), transB=1)
            self.nodes.append(helper.make_node("Identity", [made], [f"y{number}"], name=f"/out{number}"))
            outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, ["N", 5]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.start])
        graph = helper.make_graph(self.nodes, " ".join(["random", *map(str, steps)]), [x], outputs, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
