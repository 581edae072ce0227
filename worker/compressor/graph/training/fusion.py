"""Torch's own function where a file spells one out: faster in a training step, and fewer values kept for the gradients.

Only recorded graphs are rewritten, never the user's. A case applies where the numbers are the function's own (to 1e-6)
and nothing else reads the values in between:

1. `linear`: x @ W + b, with constants W of two axes and b as long as the last, whatever axes of length 1 it has before.
2. `gelu`: x / 2 · (1 + erf(x / √2)), multiplied in any order (Hendrycks and Gimpel 2016, arXiv 1606.08415).
3. `gelu` by tanh: x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 x³))), multiplied in any order, from the same paper.
4. `silu`, `hardswish`, `mish`: x · sigmoid(x), x · hardsigmoid(x), x · tanh(softplus(x)); x · clip(x + 3, 0, 6) / 6.
5. `layer_norm`: (x - mean) / √(mean of squares + ε) over the last axes (Ba et al. 2016, arXiv 1607.06450).
6. Scale, then shift, of what 5 made: its weights.
7. `scaled_dot_product_attention`: softmax(q @ kᵀ · scale + mask) @ v, with the scale on the product or on q and k. Where a
   mask of -inf leaves a query no key at all, the spelled-out form is NaN and this is 0.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

SHAPE = "shape"  # key in `fx.Node.meta`: the observed shape of a value; only its rank may be relied on for free axes

_NUMERIC = {float, int, math.sqrt, operator.pow, operator.truediv, operator.floordiv, operator.mod}
_NUMERIC |= {operator.mul, operator.add, operator.sub}
_GATES: dict[Any, Callable[..., Any]] = {
    torch.sigmoid: functional.silu,
    functional.hardsigmoid: functional.hardswish,
    torch.tanh: functional.mish,
}


@dataclass(frozen=True)
class Match:
    """A value that can be had from one function: the values in between, and what records the function's calls."""

    inner: set[Any]
    build: Callable[[fx.Graph], fx.Node]


def fuse(graph: fx.Graph, root: nn.Module) -> None:
    """Rewrite the recorded graph in place; attributes of `root` may change their strides, never their numbers."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        for case in _CASES.get(node.target, ()):
            match = case(node, root)
            if match is not None and _is_closed(match.inner - {node}, node):
                _replace(graph, node, match)
                break


def _is_closed(inner: set[Any], last: fx.Node) -> bool:
    """Whether the values in between are read by each other and the last alone."""
    return all(user in inner or user is last for node in inner for user in node.users)


def _replace(graph: fx.Graph, node: fx.Node, match: Match) -> None:
    with graph.inserting_before(node):
        fused = match.build(graph)
    fused.meta = dict(node.meta)
    node.replace_all_uses_with(fused)
    for value in reversed([value for value in graph.nodes if value in match.inner | {node}]):
        graph.erase_node(value)


def _linear(node: Any, root: nn.Module) -> Match | None:
    pairs = [pair for pair in itertools.permutations(node.args) if _calls(pair[0], torch.matmul)]
    product, bias = pairs[0] if pairs else (None, None)
    shift = _constant(bias, root)
    if product is None or shift is None:
        return None
    x, given = product.args
    turned = _calls(given, torch.permute) and given.args[1] == [1, 0]
    source = given.args[0] if turned else given
    weight = _constant(source, root)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    width = weight.shape[0 if turned else 1]
    if shift.shape[-1:] != (width,) or shift.numel() != width:
        return None
    if shift.ndim > max(1, len(_shape(product, root))):
        return None  # the sum has more axes than the product

    def build(graph: fx.Graph) -> fx.Node:
        matrix = source if turned else _by_columns(graph, source, root)
        vector = bias if shift.ndim == 1 else graph.call_function(torch.flatten, (bias,))
        return graph.call_function(functional.linear, (x, matrix, vector))

    return Match({product, given} if turned and len(given.users) == 1 else {product}, build)


def _by_columns(graph: fx.Graph, weight: Any, root: nn.Module) -> fx.Node:
    """A weight [in, out] turned as `linear` wants it, and laid out so that its gradient is made without a copy."""
    tensor = getattr(root, str(weight.target))
    if all(_calls(user, torch.matmul, torch.t) for user in weight.users):
        tensor.data = tensor.data.t().contiguous().t()
    return graph.call_function(torch.t, (weight,))


def _gelu(node: Any, root: nn.Module) -> Match | None:
    whole = _product(node, root, always=True)
    if not whole.is_scaled(0.5, 2):
        return None
    for x, rest in itertools.permutations(whole.factors):
        curve = _increment(rest, 1.0, root)
        if _calls(curve, torch.erf):
            inside = _product(curve.args[0], root, always=True)
            fits, how = inside.is_scaled(math.sqrt(0.5), 1) and inside.factors == [x], "none"
        elif _calls(curve, torch.tanh):
            inside = _product(curve.args[0], root, always=True)
            fits, how = _is_cubic(inside, x, root), "tanh"
        else:
            continue
        if fits:
            return _match(whole.inner | {rest, curve} | inside.inner, functional.gelu, x, approximate=how)
    return None


def _is_cubic(inside: _Product, x: Any, root: nn.Module) -> bool:
    """Whether it is √(2 / π) · (x + 0.044715 x³), or the same with x before the brackets; notes the values read."""
    brackets = [factor for factor in inside.factors if factor is not x]
    num_before = len(inside.factors) - len(brackets)
    if not inside.is_scaled(math.sqrt(2 / math.pi), 1 + num_before) or len(brackets) != 1 or num_before > 1:
        return False
    plain = _increment(brackets[0], 1.0 if num_before else x, root)
    if plain is None:
        return False
    power = _product(plain, root, always=True)
    inside.inner |= {brackets[0]} | power.inner
    return power.is_scaled(0.044715, 3 - num_before) and all(factor is x for factor in power.factors)


def _gated(node: Any, root: nn.Module) -> Match | None:
    for x, gate in itertools.permutations(node.args):
        if not _calls(gate, *_GATES) or isinstance(x, int | float):
            continue
        inner, given = {gate}, gate.args[0]
        if gate.target is torch.tanh:
            if not _calls(given, functional.softplus) or len(given.args) + len(given.kwargs) > 1:
                continue
            inner, given = {gate, given}, given.args[0]
        if given is x:
            return _match(inner, _GATES[gate.target], x)
    return None


def _hardswish(node: Any, root: nn.Module) -> Match | None:
    whole = _product(node, root, always=True)
    if not whole.is_scaled(1 / 6, 2):
        return None
    for x, gate in itertools.permutations(whole.factors):
        if _calls(gate, functional.hardtanh) and [gate.kwargs.get(k) for k in ("min_val", "max_val")] == [0.0, 6.0]:
            source, number = _with_number(gate.args[0], root)
            if source is x and number == 3.0:
                return _match(whole.inner | {gate, gate.args[0]}, functional.hardswish, x)
    return None


def _layer_norm(node: Any, root: nn.Module) -> Match | None:
    for centred, spread in itertools.permutations(node.args):
        inner = {centred, spread}
        if node.target is operator.mul and _calls(spread, torch.reciprocal):
            spread = spread.args[0]
            inner.add(spread)
        elif node.target is operator.mul or spread is not node.args[1]:
            continue
        if _calls(spread, torch.sqrt) and _calls(centred, operator.sub):
            return _normalised(centred, spread.args[0], inner, root)
    return None


def _normalised(centred: Any, variance: Any, inner: set[Any], root: nn.Module) -> Match | None:
    """Case 5 as far as it lies above the square root. Exporters write x - mean once, or twice."""
    total, epsilon = _with_number(variance, root)
    if not _calls(total, torch.mean):
        return None
    square = _product(total.args[0], root, always=True)
    deviations = {centred, *square.factors}
    if not square.is_scaled(1.0, 2) or not all(_calls(value, operator.sub) for value in deviations):
        return None
    x, means = centred.args[0], {value.args[1] for value in deviations}
    if any(value.args[0] is not x for value in deviations) or not all(_calls(mean, torch.mean) for mean in means):
        return None
    if any(mean.args[0] is not x for mean in means):
        return None
    num_axes = _last_axes([total, *means], x)
    if num_axes == 0:
        return None

    def build(graph: fx.Graph) -> fx.Node:
        sizes = [graph.call_method("size", (x, axis - num_axes)) for axis in range(num_axes)]
        return graph.call_function(functional.layer_norm, (x, sizes, None, None, epsilon))

    return Match({variance, total} | inner | square.inner | deviations | means, build)


def _last_axes(means: Iterable[Any], x: Any) -> int:
    """How many of the last axes all of the means are over; 0 where they are over others, or drop them."""
    rank, found = len(x.meta.get(SHAPE, ())), set()
    for mean in means:
        axes = sorted(axis % rank for axis in mean.args[1]) if rank and len(mean.args) == 3 else []
        whole = axes == list(range(rank - len(axes), rank)) and mean.args[2:] == (True,) and not mean.kwargs
        found.add(len(axes) if whole else 0)
    return found.pop() if len(found) == 1 else 0


def _weighted(node: Any, root: nn.Module) -> Match | None:
    for norm, factor in itertools.permutations(node.args):
        weight = _constant(factor, root)
        if weight is None or not _calls(norm, functional.layer_norm) or len(norm.args) != 5:
            continue
        x, sizes, scale, shift, epsilon = norm.args
        if norm.meta.get(SHAPE, ())[-len(sizes) :] != tuple(weight.shape) or shift is not None:
            continue
        if node.target is operator.add:
            return _match({norm}, functional.layer_norm, x, sizes, scale, factor, epsilon)
        if scale is None:
            inner = {norm, *(size for size in sizes if isinstance(size, fx.Node))}
            return _match(inner, functional.layer_norm, x, list(weight.shape), factor, None, epsilon)
    return None


def _attention(node: Any, root: nn.Module) -> Match | None:
    chances, v = node.args
    if not _calls(chances, torch.softmax) or chances.args[1] not in (-1, 3):
        return None
    scores, mask, inner = chances.args[0], None, {chances}
    if _calls(scores, operator.add):
        inner.add(scores)
        sums = [pair for pair in itertools.permutations(scores.args) if _is_product(pair[0], root)]
        if len(sums) != 1 or len(_shape(sums[0][1], root)) < 2:
            return None
        scores, mask = sums[0]
    product = _product(scores, root, always=True)
    if len(product.factors) != 1 or not _calls(product.factors[0], torch.matmul):
        return None
    made = product.factors[0]
    q, k = (_product(side, root) for side in made.args)
    inner |= product.inner | {made} | q.inner | k.inner
    if len(q.factors) != 1 or len(k.factors) != 1:
        return None
    query, key = q.factors[0], k.factors[0]
    shapes = [_shape(value, root) for value in (query, key, v)]
    if any(len(shape) != 4 for shape in shapes) or len({shape[:2] for shape in shapes}) != 1:
        return None
    if _shape(chances, root) != _shape(made, root):
        return None  # the mask makes the scores larger
    source, order = key, [0, 1, 3, 2]
    if _calls(key, torch.permute):
        source, order = key.args[0], [key.args[1][axis] for axis in order]
        inner |= {key} if len(key.users) == 1 else set()

    def build(graph: fx.Graph) -> fx.Node:
        scale: Any = product.coefficient * q.coefficient * k.coefficient
        for function, number in (*product.numbers, *q.numbers, *k.numbers):
            scale = graph.call_function(function, (scale, number))
        turned = source if order == [0, 1, 2, 3] else graph.call_function(torch.permute, (source, order))
        arguments = (query, turned, v, mask, 0.0, False)
        return graph.call_function(functional.scaled_dot_product_attention, arguments, {"scale": scale})

    return Match(inner, build)


def _is_product(value: Any, root: nn.Module) -> bool:
    factors = _product(value, root, always=True).factors
    return len(factors) == 1 and _calls(factors[0], torch.matmul)


@dataclass
class _Product:
    """A value as a number times tensors. `numbers` are known at run time, each with the operator it comes in by."""

    coefficient: float = 1.0
    numbers: list[tuple[Callable[..., Any], Any]] = field(default_factory=list)
    factors: list[Any] = field(default_factory=list)
    inner: set[Any] = field(default_factory=set)

    def is_scaled(self, coefficient: float, num_factors: int) -> bool:
        """Whether it is this number times so many tensors."""
        fits = math.isclose(self.coefficient, coefficient, rel_tol=1e-6) and not self.numbers
        return fits and len(self.factors) == num_factors


def _product(value: Any, root: nn.Module, *, always: bool = False) -> _Product:
    """The value taken apart as far as nothing else reads the parts; `always`: the value itself in any case."""
    found = _Product()
    _multiply(found, value, root, always)
    return found


def _multiply(found: _Product, value: Any, root: nn.Module, always: bool) -> None:
    number = _number(value, root)
    if number is not None:
        found.coefficient *= number
        return
    parts = list(_parts(value, root)) if always or len(value.users) == 1 else []
    if not parts:
        found.factors.append(value)
        return
    found.inner.add(value)
    for function, part in parts:
        divisor = _number(part, root)
        if function is operator.truediv and divisor is not None:
            found.coefficient /= divisor
        elif divisor is None and _is_size(part):
            found.numbers.append((function, part))
        else:
            _multiply(found, part, root, False)


def _parts(value: Any, root: nn.Module) -> Iterator[tuple[Callable[..., Any], Any]]:
    """What a product, a quotient by a number, or a small power is made of."""
    if _calls(value, operator.mul):
        yield from ((operator.mul, part) for part in value.args)
    elif _calls(value, operator.truediv):
        divisor = _number(value.args[1], root)
        if divisor or (divisor is None and _is_size(value.args[1])):
            yield operator.mul, value.args[0]
            yield operator.truediv, value.args[1]
    elif _calls(value, torch.pow) and _number(value.args[1], root) in (2.0, 3.0):
        yield from [(operator.mul, value.args[0])] * int(_number(value.args[1], root) or 0)


def _increment(value: Any, wanted: Any, root: nn.Module) -> Any:
    """What is added to `wanted` (a number or a value) in a sum; None where the value is no such sum."""
    for term, other in itertools.permutations(value.args) if _calls(value, operator.add) else ():
        if term is wanted or (isinstance(wanted, float) and _number(term, root) == wanted):
            return other
    return None


def _with_number(value: Any, root: nn.Module) -> tuple[Any, float | None]:
    """A sum of a value and a number; the value is None where it is none."""
    for number, other in itertools.permutations(value.args) if _calls(value, operator.add) else ():
        if _number(number, root) is not None:
            return other, _number(number, root)
    return None, None


def _match(inner: set[Any], function: Callable[..., Any], *args: Any, **named: Any) -> Match:
    return Match(inner, lambda graph: graph.call_function(function, args, named))


def _calls(value: Any, *functions: Callable[..., Any]) -> bool:
    return isinstance(value, fx.Node) and value.op == "call_function" and value.target in functions


def _constant(value: Any, root: nn.Module) -> torch.Tensor | None:
    """The tensor of an attribute; None for anything else."""
    is_attribute = isinstance(value, fx.Node) and value.op == "get_attr"
    found = getattr(root, str(value.target), None) if is_attribute else None
    return found if isinstance(found, torch.Tensor) else None


def _shape(value: Any, root: nn.Module) -> tuple[int, ...]:
    """The observed shape; () where it is not known."""
    held = _constant(value, root)
    if held is not None:
        return tuple(held.shape)
    return value.meta.get(SHAPE, ()) if isinstance(value, fx.Node) else ()


def _number(value: Any, root: nn.Module) -> float | None:
    """A number that is written in the graph, or held as a tensor of one element that is no weight."""
    if isinstance(value, int | float):
        return float(value)
    held = _constant(value, root)
    if held is None or isinstance(held, nn.Parameter) or held.numel() != 1 or held.ndim > 1:
        return None
    return float(held)


def _is_size(value: Any) -> bool:
    """Whether it is a plain number that a shape gives at run time."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float)
    if value.op == "call_method":
        return value.target == "size" and len(value.args) == 2
    return value.op == "call_function" and value.target in _NUMERIC and all(map(_is_size, value.args))


_CASES: dict[Any, tuple[Callable[[fx.Node, nn.Module], Match | None], ...]] = {
    operator.add: (_linear, _weighted),
    operator.mul: (_gelu, _gated, _hardswish, _layer_norm, _weighted),
    operator.truediv: (_gelu, _hardswish, _layer_norm),
    torch.matmul: (_attention,),
}
