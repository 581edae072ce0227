"""Random networks: a description is a list of steps, and any part of that list is a description too, so that it can shrink.

A step is an operator's name and three numbers. The numbers choose among what there is when the step is built (values by
recency, widths, kernels), so a step means something whatever was built before it; one that finds no input that it can take
builds nothing. Shapes are (N, channels, height, width), (N, length, features) or (N, features), N is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from tests.worker.compressor.graph.random_blocks import BLOCKS
from tests.worker.compressor.graph.random_builder import WIDTHS, Builder, Shape, Step


def _picture(shape: Shape) -> bool:
    return len(shape) == 3


def _sequence(shape: Shape) -> bool:
    return len(shape) == 2


def _conv(net: Builder, step: Step) -> None:
    """Plain, grouped or strided; grouped where the number says so and the channels divide."""
    if (found := net.pick(step.a, _picture)) is None:
        return
    x, (channels, height, width) = found
    out, kernel = WIDTHS[step.b % 5], (1, 3)[step.c % 2]
    groups = 4 if step.c % 5 == 4 and channels % 4 == 0 else 1
    stride = 2 if step.c % 7 == 6 and height > 2 else 1
    made = net.convolution(x, out, channels // groups, kernel, group=groups, strides=[stride, stride])
    net.add(made, (out, -(-height // stride), -(-width // stride)))


def _depthwise(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, _picture)) is not None:
        x, (channels, *size) = found
        out = channels * (1 + step.b % 2)
        net.add(net.convolution(x, out, 1, 3, group=channels), (out, *size))


def _transposed(net: Builder, step: Step) -> None:
    found = net.pick(step.a, lambda shape: _picture(shape) and shape[1] <= 4)
    if found is not None:
        x, (channels, height, width) = found
        out = WIDTHS[step.b % 5]
        made = net.node(
            "ConvTranspose", x, net.weight(channels, out, 2, 2, scale=channels**-0.5), net.weight(out, scale=0.2),
            strides=[2, 2], kernel_shape=[2, 2],
        )  # fmt: skip
        net.add(made, (out, 2 * height, 2 * width))


def _batchnorm(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: len(shape) != 2)) is not None:
        x, shape = found
        scale, variance = (net.constant(net.rng.uniform(0.5, 1.5, shape[0]).astype(np.float32)) for _ in range(2))
        bias, mean = (net.weight(shape[0], scale=0.3) for _ in range(2))
        net.add(net.node("BatchNormalization", x, scale, bias, mean, variance), shape)


def _activation(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: True)) is not None:
        x, shape = found
        op = ("LeakyRelu", "Sigmoid", "Tanh", "Relu", "Elu", "Softplus")[step.b % 6]
        net.add(net.node(op, x), shape)


def _add(net: Builder, step: Step) -> None:
    """Two values of one shape; a projection makes them so where they differ in channels alone."""
    if (found := net.pick(step.a, lambda shape: True)) is None:
        return
    x, shape = found
    op = ("Add", "Add", "Mul", "Sub")[step.c % 4]
    same = net.pick(step.b, lambda other: other == shape)
    if same is not None and same[0] != x:
        net.add(net.node(op, x, same[0]), shape)
        return
    like = net.pick(step.b, lambda other: _picture(shape) and _picture(other) and other[1:] == shape[1:])
    if like is not None and like[0] != x:
        net.add(net.node(op, x, net.convolution(like[0], shape[0], like[1][0], 1)), shape)


def _gate(net: Builder, step: Step) -> None:
    """Squeeze-and-excite."""
    if (found := net.pick(step.a, _picture)) is not None:
        x, shape = found
        squeezed = net.convolution(net.node("GlobalAveragePool", x), 4, shape[0], 1)
        excited = net.convolution(net.node("LeakyRelu", squeezed), shape[0], 4, 1)
        net.add(net.node("Mul", x, net.node("Sigmoid", excited)), shape)


def _without(shape: Shape, axis: int) -> Shape:
    return shape[: axis - 1] + shape[axis:]


def _concat(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: True)) is None:
        return
    x, shape = found
    axis = len(shape) if len(shape) < 3 else 1

    def alike(other: Shape) -> bool:
        return len(other) == len(shape) and _without(other, axis) == _without(shape, axis)

    other = net.pick(step.b, alike)
    if other is not None and shape[axis - 1] + other[1][axis - 1] <= 64:
        made = list(shape)
        made[axis - 1] += other[1][axis - 1]
        net.add(net.node("Concat", x, other[0], axis=axis), tuple(made))


def _split(net: Builder, step: Step) -> None:
    """Two parts of the channels, equal or not."""
    if (found := net.pick(step.a, lambda shape: shape[-1 if len(shape) < 3 else 0] >= 4)) is None:
        return
    x, shape = found
    place = len(shape) - 1 if len(shape) < 3 else 0
    width = shape[place]
    first = width // 2 if step.b % 2 else max(1, width // 4)
    sizes = [first, width - first]
    if net.opset < 13:
        name = net.node("Split", x, outputs=2, axis=place + 1, split=sizes)
    else:
        name = net.node("Split", x, net.constant(sizes), outputs=2, axis=place + 1)
    for part, size in zip([name, f"{name}.1"], sizes, strict=True):
        net.add(part, (*shape[:place], size, *shape[place + 1 :]))


def _slice(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: shape[-1 if len(shape) < 3 else 0] >= 4)) is None:
        return
    x, shape = found
    place = len(shape) - 1 if len(shape) < 3 else 0
    start, stride = step.b % 2, 1 + step.c % 2
    ends = shape[place] - (step.b % 3)
    left = len(range(start, ends, stride))
    made = net.node(
        "Slice", x, net.constant([start]), net.constant([ends]), net.constant([place + 1]), net.constant([stride])
    )
    net.add(made, (*shape[:place], left, *shape[place + 1 :]))


def _gather(net: Builder, step: Step) -> None:
    """Channels in another order."""
    if (found := net.pick(step.a, lambda shape: True)) is not None:
        x, shape = found
        place = len(shape) - 1 if len(shape) < 3 else 0
        order = net.rng.permutation(shape[place])
        net.add(net.node("Gather", x, net.constant(order), axis=place + 1), shape)


def _shuffle(net: Builder, step: Step) -> None:
    groups = (2, 4)[step.b % 2]
    if (found := net.pick(step.a, lambda shape: _picture(shape) and shape[0] % groups == 0)) is not None:
        x, (channels, height, width) = found
        apart = net.reshape(x, -1 if step.c % 2 else 0, groups, channels // groups, height, width)
        turned = net.node("Transpose", apart, perm=[0, 2, 1, 3, 4])
        net.add(net.reshape(turned, 0, channels, height, width), (channels, height, width))


def _shuffle_unit(net: Builder, step: Step) -> None:
    """Grouped convolutions with a shuffle between them, concatenated with what they read, or added to it."""
    groups = (2, 3, 4, 8)[step.b % 4]
    if (found := net.pick(step.a, lambda shape: _picture(shape) and shape[0] % groups == 0)) is None:
        return
    x, (channels, height, width) = found
    inner = groups * (4, 6, 10)[step.c % 3]
    out = channels if step.c % 2 else 2 * groups
    made = net.convolution(x, inner, channels // groups, 1, group=groups)
    apart = net.reshape(made, 0, groups, inner // groups, height, width)
    mixed = net.reshape(net.node("Transpose", apart, perm=[0, 2, 1, 3, 4]), 0, inner, height, width)
    made = net.convolution(mixed, out, inner // groups, 1, group=groups)
    if step.c % 2:
        net.add(net.node("Add", x, made), (channels, height, width))
    elif channels + out <= 64:
        net.add(net.node("Concat", x, made, axis=1), (channels + out, height, width))


def _pool(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: _picture(shape) and shape[1] >= 2)) is not None:
        x, (channels, height, width) = found
        op = ("MaxPool", "AveragePool")[step.b % 2]
        made = net.node(op, x, kernel_shape=[2, 2], strides=[2, 2])
        net.add(made, (channels, height // 2, width // 2))


def _global_pool(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, _picture)) is not None:
        x, (channels, *_) = found
        net.add(net.node("Flatten", net.node(("GlobalAveragePool", "GlobalMaxPool")[step.b % 2], x)), (channels,))


def _flatten(net: Builder, step: Step) -> None:
    """Everything but N to one axis, by Flatten or Reshape, then a linear layer."""
    if (found := net.pick(step.a, lambda shape: len(shape) > 1 and np.prod(shape) <= 1024)) is not None:
        x, shape = found
        size, out = int(np.prod(shape)), WIDTHS[step.b % 5]
        flat = net.node("Flatten", x, axis=1) if step.c % 2 else net.reshape(x, -1, size)
        net.add(net.node("Gemm", flat, net.weight(out, size), net.weight(out, scale=0.2), transB=1), (out,))


def _dense(net: Builder, step: Step) -> None:
    """A linear layer on the last axis; pictures are turned to channels-last and back."""
    if (found := net.pick(step.a, lambda shape: True)) is None:
        return
    x, shape = found
    out = WIDTHS[step.b % 5]
    if not _picture(shape):
        net.add(net.linear(x, shape[-1], out), (*shape[:-1], out))
        return
    turned = net.linear(net.node("Transpose", x, perm=[0, 2, 3, 1]), shape[0], out)
    net.add(net.node("Transpose", turned, perm=[0, 3, 1, 2]), (out, *shape[1:]))


def _to_sequence(net: Builder, step: Step) -> None:
    """Patches: (N, C, H, W) to (N, H·W, C)."""
    if (found := net.pick(step.a, lambda shape: _picture(shape) and shape[1] <= 4)) is not None:
        x, (channels, height, width) = found
        flat = net.reshape(x, 0, channels, height * width)
        net.add(net.node("Transpose", flat, perm=[0, 2, 1]), (height * width, channels))


def _to_picture(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda shape: _sequence(shape) and shape[0] in (4, 16))) is not None:
        x, (length, channels) = found
        side = {4: 2, 16: 4}[length]
        turned = net.node("Transpose", x, perm=[0, 2, 1])
        net.add(net.reshape(turned, 0, channels, side, side), (channels, side, side))


def _attention(net: Builder, step: Step) -> None:
    """Self-attention with two heads, residual added; queries, keys and values by three layers, or by one that is split."""
    if (found := net.pick(step.a, _sequence)) is None:
        return
    x, (length, features) = found
    heads, size = 2, (4, 8)[step.b % 2]
    width = heads * size
    if step.c % 2:
        whole = net.linear(x, features, 3 * width)
        if net.opset < 13:
            first = net.node("Split", whole, outputs=3, axis=2, split=[width] * 3)
        else:
            first = net.node("Split", whole, net.constant([width] * 3), outputs=3, axis=2)
        parts = [first, f"{first}.1", f"{first}.2"]
    else:
        parts = [net.linear(x, features, width) for _ in range(3)]
    apart = [net.reshape(part, 0, length, heads, size) for part in parts]
    query, value = (net.node("Transpose", apart[index], perm=[0, 2, 1, 3]) for index in (0, 2))
    key = net.node("Transpose", apart[1], perm=[0, 2, 3, 1])
    score = net.node("Mul", net.node("MatMul", query, key), net.constant(np.float32(size**-0.5)))
    mixed = net.node("MatMul", net.node("Softmax", score, axis=3), value)
    together = net.reshape(net.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, length, width)
    net.add(net.node("Add", net.linear(together, width, features), x), (length, features))


def _layernorm(net: Builder, step: Step) -> None:
    """Over the last axis, as exporters write it before opset 17."""
    if (found := net.pick(step.a, lambda shape: len(shape) < 3)) is not None:
        x, shape = found
        centred = net.node("Sub", x, net.mean(x, -1, keep=True))
        squared = net.node("Mul", centred, centred)
        spread = net.node("Sqrt", net.node("Add", net.mean(squared, -1, keep=True), net.constant(np.float32(1e-5))))
        normal = net.node("Div", centred, spread)
        scaled = net.node("Mul", normal, net.weight(shape[-1], scale=0.2, offset=1.0))
        net.add(net.node("Add", scaled, net.weight(shape[-1], scale=0.2)), shape)


def _mean(net: Builder, step: Step) -> None:
    """The mean over the positions, or one of them."""
    if (found := net.pick(step.a, _sequence)) is not None:
        x, (length, features) = found
        if step.b % 2:
            net.add(net.node("Gather", x, net.constant(np.array(step.c % length, np.int64)), axis=1), (features,))
        else:
            net.add(net.mean(x, 1, keep=False), (features,))


def _mix_positions(net: Builder, step: Step) -> None:
    """A linear layer over the positions of a sequence."""
    if (found := net.pick(step.a, _sequence)) is not None:
        x, (length, features) = found
        out = (4, 16)[step.b % 2]
        turned = net.linear(net.node("Transpose", x, perm=[0, 2, 1]), length, out)
        net.add(net.node("Transpose", turned, perm=[0, 2, 1]), (out, features))


BUILDERS: dict[str, Callable[[Builder, Step], None]] = {
    "conv": _conv, "depthwise": _depthwise, "transposed": _transposed, "batchnorm": _batchnorm,
    "activation": _activation, "add": _add, "gate": _gate, "concat": _concat, "split": _split, "slice": _slice,
    "gather": _gather, "shuffle": _shuffle, "shuffle_unit": _shuffle_unit,
    "pool": _pool, "global_pool": _global_pool, "flatten": _flatten,
    "dense": _dense, "to_sequence": _to_sequence, "to_picture": _to_picture, "attention": _attention,
    "layernorm": _layernorm, "mean": _mean, "mix_positions": _mix_positions,
    **BLOCKS,
}  # fmt: skip
_LIKELY = ("conv", "conv", "conv", "add", "concat", "split", "dense", "activation", "attention")


def random_steps(seed: int) -> list[Step]:
    """The description of network `seed`: 4 to 16 steps."""
    rng = np.random.default_rng([seed, 1])
    names = [*BUILDERS, *_LIKELY]
    rows = rng.integers(0, 1 << 16, (int(rng.integers(4, 17)), 3)).tolist()
    # inputs are mostly recent values, so that networks are deep
    return [Step(names[int(rng.integers(len(names)))], int(rng.geometric(0.5)) - 1, b, c) for _, b, c in rows]


def build(steps: Sequence[Step], seed: int) -> onnx.ModelProto:
    """The network of a description; the seed gives weights, opset and the kind of input."""
    rng = np.random.default_rng([seed, 2])
    start: Shape = [(3, 8, 8), (3, 8, 8), (16, 6)][int(rng.integers(3))]
    net = Builder(rng, int(rng.choice([11, 13, 17, 20])), start)
    (_conv if _picture(start) else _dense)(net, Step("stem", 0, int(rng.integers(5)), 1))
    for step in steps:
        BUILDERS[step.op](net, step)
    return net.finish(steps)


def shrink(steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """A shorter list of steps that still fails: leaves out pieces, the largest first, as long as that goes on failing."""
    steps = list(steps)
    size = max(1, len(steps) // 2)
    while size:
        start = 0
        while start < len(steps):
            shorter = steps[:start] + steps[start + size :]
            if fails(shorter):
                steps = shorter
            else:
                start += size
        size //= 2
    return steps
