"""Evaluate a network node by node: on tensors (eagerly) or on fx proxies (to record a graph), by the same loop.

Numbers that come from shapes and integer constants are computed in numpy as Python ints and never become tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worker.compressor.errors import CompressorError, ImportFailed
from worker.compressor.graph.network import Network, Node
from worker.compressor.graph.operator import Call, Operator, operator_of
from worker.compressor.graph.proxies import as_real, is_real, record

#: Integer constants up to this size take part in shape arithmetic.
_MOST_KNOWN = 4096
#: No value of one sample is larger in a network that can be trained here; in a file made to exhaust memory it is.
_MOST_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Facts:
    """Shapes (and dtypes) of every value at one set of input shapes, and the numbers that are known there."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    known: dict[str, np.ndarray]


class Constants:
    """The constants of a network as torch tensors, made once each."""

    def __init__(self, network: Network, device: torch.device | str = "cpu") -> None:
        self._network = network
        self._device = device
        self._made: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            self._made[name] = _to_read(self._network.tensors[name]).to(self._device)
        return self._made[name]

    def forget(self, name: str) -> None:
        """Read the tensor again from the network at its next use."""
        self._made.pop(name, None)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A torch tensor with a copy of the array's content (bfloat16 included)."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape).copy())


def _to_read(array: np.ndarray) -> torch.Tensor:
    """A tensor that is only read: the array's own memory, which may be a file's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about memory that must not be written to
        return shared_tensor(np.ascontiguousarray(array).reshape(array.shape))


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """A torch tensor on the array's own memory (bfloat16 included)."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_numbers(numbers: np.ndarray, device: Any) -> Any:
    """A tensor, recorded where some are proxies, of computed numbers (an object array)."""
    flat = numbers.reshape(-1).tolist()
    if any(is_real(number) for number in flat):
        flat = [number if is_real(number) else as_real(number) for number in flat]
    return torch.reshape(record(torch.tensor, flat, device=device), numbers.shape)


def as_array(tensor: torch.Tensor, like: np.ndarray) -> np.ndarray:
    """The tensor's content as a numpy array of the dtype of `like`."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(like.dtype).copy()
    return tensor.numpy().astype(like.dtype, copy=True)


def evaluate(node: Node, env: Mapping[str, Any], network: Network, **options: Any) -> tuple[Any, ...]:
    """The outputs of one node. `env` maps value names to tensors, proxies or known numbers.

    `options` are those of `Call` (constant, shape, dtype, device, training, momentum, moving), and `lift`, which makes a
    tensor of known numbers.

    Raises:
        ImportFailed: where the operator, or this form of it, is not executable.
    """
    operator = operator_of(node)

    def known(name: str) -> np.ndarray | None:
        value = env.get(name)
        if isinstance(value, np.ndarray):
            return value
        return network.tensors.get(name) if value is None else None

    given = [known(name) if name else None for name in node.inputs]
    if operator.known is not None and _is_arithmetic(operator, node, given, env) and _is_steered(operator, given):
        result = operator.known(node, [array for array in given if array is not None])
        if result is not None:
            return tuple(map(_numbers, result)) if isinstance(result, tuple) else (_numbers(result),)
    values = [env.get(name) if name else None for name in node.inputs]
    lift = options.pop("lift", as_tensor)
    for slot, value in enumerate(values):
        if isinstance(value, np.ndarray) and (operator.data is None or slot in operator.data):
            whole = value.dtype != object
            values[slot] = lift(value) if whole else from_numbers(value, options.get("device", "cpu"))
    outcome = operator.run(Call(node, values, known=known, **options))
    return outcome if isinstance(outcome, tuple) else (outcome,)


def _is_arithmetic(operator: Operator, node: Node, given: list[np.ndarray | None], env: Mapping[str, Any]) -> bool:
    """Whether the node computes with known numbers alone, so that Python does it and no tensor is made."""
    present = [array for name, array in zip(node.inputs, given, strict=True) if name]
    if any(array is None or array.size > _MOST_KNOWN for array in present):
        return False
    whole = all(array is not None and array.dtype.kind in "iubO" for array in present)
    # axes and sizes do not make a number of what they move: a class token that is expanded to the batch is a weight
    data = [name for slot, name in enumerate(node.inputs) if operator.data is None or slot in operator.data]
    return whole or any(isinstance(env.get(name), np.ndarray) for name in data)


def _is_steered(operator: Operator, given: list[np.ndarray | None]) -> bool:
    """Whether the axes, sizes and bounds are numbers now, so that Python can move the data, which may be proxies."""
    steering = [] if operator.data is None else [a for slot, a in enumerate(given) if slot not in operator.data]
    return all(
        array is None or array.dtype != object or all(isinstance(number, int) for number in array.flat)
        for array in steering
    )


def _numbers(result: Any) -> np.ndarray:
    """An array; a single proxy (of an object array) is wrapped, never looked into."""
    if isinstance(result, np.ndarray):
        return result
    if isinstance(result, np.generic | int | float | bool):
        return np.asarray(result)
    boxed = np.empty((), dtype=object)
    boxed[()] = result
    return boxed


class Stepper:
    """Node-by-node evaluation on torch tensors that keeps only live values.

    `for node, inputs, outputs in Stepper(network, feeds)`, or step by step: `peek` tells the node whose turn it is,
    `inputs` its input tensors, `set_weight` replaces a constant before it is used, `step` evaluates.
    """

    def __init__(
        self,
        network: Network,
        feeds: Mapping[str, torch.Tensor],
        *,
        keep: frozenset[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.env: dict[str, Any] = dict(feeds)
        self._constants = Constants(network, device)
        self._device = device
        self._keep = frozenset(port.name for port in network.outputs) if keep is None else keep
        self._last = {name: index for index, node in enumerate(network.nodes) for name in node.inputs}
        self._index = 0

    def __iter__(self) -> Iterator[tuple[Node, list[Any], tuple[Any, ...]]]:
        while (node := self.peek()) is not None:
            inputs = self.inputs(node)
            yield node, inputs, self.step()

    def peek(self) -> Node | None:
        """The node whose turn it is, None at the end."""
        nodes = self.network.nodes
        return nodes[self._index] if self._index < len(nodes) else None

    def inputs(self, node: Node) -> list[Any]:
        """The input tensors of the node whose turn it is; constants as they are now, None for absent inputs."""
        return [None if name == "" else self.value(name) for name in node.inputs]

    def value(self, name: str) -> Any:
        """A live value or a constant; known numbers (shape arithmetic) come as numpy arrays."""
        return self.env[name] if name in self.env else self._constants(name)

    def is_needed(self, name: str) -> bool:
        """Whether a node that is still to come reads the value."""
        return self._last.get(name, -1) >= self._index

    def set_weight(self, name: str, array: np.ndarray) -> None:
        """Replace a constant of the network for this node and those that follow."""
        self.network.tensors[name] = array
        self._constants.forget(name)

    def compute(self) -> tuple[Any, ...]:
        """The outputs of the node whose turn it is, as its weights are now; it stays its turn."""
        return evaluate(
            self.network.nodes[self._index],
            self.env,
            self.network,
            constant=self._constants,
            shape=lambda name: tuple(self.value(name).shape),
            device=self._device,
        )

    def step(self) -> tuple[Any, ...]:
        """Evaluate the node whose turn it is, forget what nobody needs any more, and return its outputs."""
        node, outputs = self.network.nodes[self._index], self.compute()
        self.env.update(zip(node.outputs, outputs, strict=False))
        for name in {*node.inputs, *node.outputs}:
            if self._last.get(name, -1) <= self._index and name not in self._keep:
                self.env.pop(name, None)
                self._constants.forget(name)
        self._index += 1
        return outputs


def run(network: Network, feeds: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, np.ndarray]:
    """The network's outputs by name, evaluated eagerly without gradients."""
    given = {k: v if isinstance(v, torch.Tensor) else as_tensor(v) for k, v in feeds.items()}
    stepper = Stepper(network, given)
    with torch.no_grad():
        while stepper.peek():
            stepper.step()  # not by iteration, which holds the tensors of a node while the next one is evaluated
        return {port.name: _result(stepper.value(port.name)) for port in network.outputs}


def _result(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy())


def observe(network: Network, feeds_shape: Mapping[str, tuple[int, ...]]) -> Facts:
    """Shapes of every value at these input shapes, read off one evaluation (zeros in), so nothing is inferred.

    What was observed last is kept with the network, until its structure or the shape of a tensor changes.

    Raises:
        ImportFailed: `input_mismatch` where the network cannot take these shapes; names the node.
    """
    stored = tuple((name, array.shape) for name, array in network.tensors.items())
    key = (tuple(sorted(feeds_shape.items())), hash(stored))
    if network.observed is None or network.observed[0] != key:
        network.observed = (key, _observe(network, feeds_shape))
    facts: Facts = network.observed[1]
    return facts


def _observe(network: Network, feeds_shape: Mapping[str, tuple[int, ...]]) -> Facts:
    feeds = {port.name: torch.zeros(feeds_shape[port.name], dtype=torch_dtype(port.dtype)) for port in network.inputs}
    stepper = Stepper(network, feeds)
    shapes = {name: tuple(array.shape) for name, array in network.tensors.items()}
    dtypes = {name: array.dtype.name for name, array in network.tensors.items()}
    known: dict[str, np.ndarray] = {}
    shapes.update({name: tuple(tensor.shape) for name, tensor in feeds.items()})
    dtypes.update({port.name: port.dtype for port in network.inputs})
    with torch.no_grad():
        while (node := stepper.peek()) is not None:
            for name, value in zip(node.outputs, _guarded(stepper, node, feeds_shape), strict=False):
                if not name:
                    continue
                shapes[name] = tuple(value.shape)
                _check_size(node, shapes[name])
                dtypes[name] = str(value.dtype).removeprefix("torch.")
                if isinstance(value, np.ndarray):
                    known[name] = value
    return Facts(shapes, dtypes, known)


def _check_size(node: Node, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ImportFailed(
            f"node '{node.name}' ({node.op}) makes {math.prod(shape)} elements of one sample",
            code="inspection_resource_limit",
            hint="Give smaller input shapes in `inputs`.",
        )


def _guarded(stepper: Stepper, node: Node, feeds_shape: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    try:
        return stepper.step()
    except CompressorError:
        raise
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise MemoryError(str(error)) from error
        at = ", ".join(f"{name} {list(shape)}" for name, shape in feeds_shape.items())
        raise ImportFailed(
            f"node '{node.name}' ({node.op}) cannot be evaluated with inputs of shape {at}: {str(error)[:300]}",
            code="input_mismatch",
            hint="Give the input shapes in `inputs`, or check that the file runs in onnxruntime.",
        ) from error


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a port's dtype name.

    Raises:
        ImportFailed: `unsupported_dtype` for one that torch does not compute with.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ImportFailed(f"an input has the dtype {name}", code="unsupported_dtype", hint="Use float or int inputs.")
    return dtype
