"""More steps of random networks (see `random_nets`): blocks that real networks are made of, and operators that move data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.worker.compressor.graph.random_builder import WIDTHS, Builder, Shape, Step

MOST_CHANNELS = 64


def _picture(shape: Shape) -> bool:
    return len(shape) == 3


def _sequence(shape: Shape) -> bool:
    return len(shape) == 2


def _axis(shape: Shape) -> int:
    """Where the channels lie, N counted."""
    return len(shape) if len(shape) < 3 else 1


def _depth_to_space(net: Builder, step: Step) -> None:
    """Sub-pixel convolution: channels become pixels, in one order or the other."""
    if (found := net.pick(step.a, lambda s: _picture(s) and s[0] % 4 == 0 and s[1] <= 4)) is not None:
        x, (channels, height, width) = found
        made = net.node("DepthToSpace", x, blocksize=2, mode=("DCR", "CRD")[step.b % 2])
        net.add(made, (channels // 4, 2 * height, 2 * width))


def _space_to_depth(net: Builder, step: Step) -> None:
    """The focus layer: pixels become channels, by the operator or by strided slices."""
    if (found := net.pick(step.a, lambda s: _picture(s) and s[0] <= 16 and s[1] >= 4)) is None:
        return
    x, (channels, height, width) = found
    if step.b % 2:
        made = net.node("SpaceToDepth", x, blocksize=2)
    else:
        axes, ends, steps = net.constant([2, 3]), net.constant([height, width]), net.constant([2, 2])
        starts = [net.constant(start) for start in ([0, 0], [1, 0], [0, 1], [1, 1])]
        made = net.node("Concat", *[net.node("Slice", x, start, ends, axes, steps) for start in starts], axis=1)
    net.add(made, (4 * channels, height // 2, width // 2))


def _resize(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda s: _picture(s) and s[1] <= 4)) is not None:
        x, (channels, height, width) = found
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        empty = net.constant(np.array([], np.float32))
        mode = ("nearest", "linear")[step.b % 2]
        made = net.node("Resize", x, empty, scales, mode=mode, coordinate_transformation_mode="asymmetric")
        net.add(made, (channels, 2 * height, 2 * width))


def _pad(net: Builder, step: Step) -> None:
    """A border around the picture, then a convolution without padding."""
    if (found := net.pick(step.a, lambda s: _picture(s) and s[1] >= 2)) is not None:
        x, (channels, *size) = found
        out = WIDTHS[step.b % 5]
        mode = ("constant", "reflect", "edge")[step.c % 3]
        wide = net.node("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode=mode)
        net.add(net.node("Conv", wide, net.weight(out, channels, 3, 3), kernel_shape=[3, 3]), (out, *size))


def _pad_channels(net: Builder, step: Step) -> None:
    """Zeros beside the channels (the shortcut of the first ResNets), or a repetition of them."""
    if (found := net.pick(step.a, lambda s: s[_axis(s) - 1] <= 24)) is None:
        return
    x, shape = found
    axis = _axis(shape)
    if step.b % 2:
        repeats = [1] * (len(shape) + 1)
        repeats[axis] = 2
        made, channels = net.node("Tile", x, net.constant(repeats)), 2 * shape[axis - 1]
    else:
        before, after = step.c % 3, 4 - step.c % 3
        pads = [0] * (2 * len(shape) + 2)
        pads[axis], pads[axis + len(shape) + 1] = before, after
        made, channels = net.node("Pad", x, net.constant(pads)), shape[axis - 1] + 4
    net.add(made, (*shape[: axis - 1], channels, *shape[axis:]))


def _prelu(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda s: True)) is not None:
        x, shape = found
        slopes = net.weight(*((shape[0], 1, 1) if _picture(shape) else (shape[-1],)), scale=0.1, offset=0.2)
        net.add(net.node("PRelu", x, slopes), shape)


def _gated(net: Builder, step: Step) -> None:
    """A gated linear unit: half of the channels open or close the other half."""
    if (found := net.pick(step.a, lambda s: s[_axis(s) - 1] % 2 == 0)) is None:
        return
    x, shape = found
    axis = _axis(shape)
    half = shape[axis - 1] // 2
    if net.opset < 13:
        first = net.node("Split", x, outputs=2, axis=axis, split=[half, half])
    else:
        first = net.node("Split", x, net.constant([half, half]), outputs=2, axis=axis)
    made = net.node("Mul", first, net.node(("Sigmoid", "Tanh")[step.b % 2], f"{first}.1"))
    net.add(made, (*shape[: axis - 1], half, *shape[axis:]))


def _spatial_gate(net: Builder, step: Step) -> None:
    """CBAM's second half: mean and maximum over the channels make a map that is multiplied in."""
    if (found := net.pick(step.a, _picture)) is None:
        return
    x, shape = found
    mean = net.mean(x, 1, keep=True)
    if net.opset < 18:
        most = net.node("ReduceMax", x, axes=[1], keepdims=1)
    else:
        most = net.node("ReduceMax", x, net.constant([1]), keepdims=1)
    both = net.node("Concat", mean, most, axis=1)
    net.add(net.node("Mul", x, net.node("Sigmoid", net.convolution(both, 1, 2, 3))), shape)


def _group_norm(net: Builder, step: Step) -> None:
    """As exporters write it before opset 21: InstanceNormalization of groups, then a scale for each channel."""
    groups = (2, 4)[step.b % 2]
    found = net.pick(step.a, lambda s: _picture(s) and s[0] % groups == 0 and s[0] * s[1] * s[2] // groups > 4)
    if found is not None:
        x, (channels, height, width) = found
        ones, zeros = (net.constant(np.full(groups, value, np.float32)) for value in (1, 0))
        normal = net.node("InstanceNormalization", net.reshape(x, 0, groups, -1), ones, zeros)
        apart = net.reshape(normal, 0, channels, height, width)
        scaled = net.node("Mul", apart, net.weight(channels, 1, 1, scale=0.2, offset=1.0))
        net.add(net.node("Add", scaled, net.weight(channels, 1, 1, scale=0.2)), (channels, height, width))


def _instance_norm(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda s: _picture(s) and s[1] >= 2)) is not None:
        x, shape = found
        made = net.node(
            "InstanceNormalization", x, net.weight(shape[0], scale=0.2, offset=1.0), net.weight(shape[0], scale=0.2)
        )
        net.add(made, shape)


def _rms_norm(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, lambda s: len(s) < 3)) is not None:
        x, shape = found
        squared = net.node("Pow", x, net.constant(np.float32(2)))
        size = net.node("Add", net.mean(squared, -1, keep=True), net.constant(np.float32(1e-5)))
        normal = net.node("Mul", x, net.node("Reciprocal", net.node("Sqrt", size)))
        net.add(net.node("Mul", normal, net.weight(shape[-1], scale=0.2, offset=1.0)), shape)


def _grouped_attention(net: Builder, step: Step) -> None:
    """Four query heads, two (or one) of keys and values, repeated by Expand; no residual."""
    if (found := net.pick(step.a, _sequence)) is None:
        return
    x, (length, features) = found
    size, pairs = (4, 6)[step.b % 2], (1, 2)[step.c % 2]
    query = net.reshape(net.linear(x, features, 4 * size), 0, length, 4, size)
    query = net.node("Transpose", query, perm=[0, 2, 1, 3])
    keys = []
    for _ in range(2):
        apart = net.reshape(net.linear(x, features, pairs * size), 0, length, pairs, size)
        turned = net.node("Transpose", apart, perm=[0, 2, 1, 3])
        wide = net.reshape(turned, -1, pairs, 1, length, size)
        repeated = net.node("Expand", wide, net.constant([1, 1, 4 // pairs, 1, 1]))
        keys.append(net.reshape(repeated, -1, 4, length, size))
    score = net.node("MatMul", query, net.node("Transpose", keys[0], perm=[0, 1, 3, 2]))
    score = net.node("Div", score, net.constant(np.float32(size**0.5)))
    mixed = net.node("MatMul", net.node("Softmax", score, axis=3), keys[1])
    together = net.reshape(net.node("Transpose", mixed, perm=[0, 2, 1, 3]), 0, length, 4 * size)
    out = WIDTHS[step.b % 5]
    net.add(net.linear(together, 4 * size, out), (length, out))


def _recurrent(net: Builder, step: Step) -> None:
    """LSTM or GRU, one direction or two, over a sequence."""
    if (found := net.pick(step.a, _sequence)) is None:
        return
    x, (length, features) = found
    op, hidden, directions = ("LSTM", "GRU")[step.b % 2], (4, 8)[step.c % 2], 1 + step.c // 2 % 2
    gates = {"LSTM": 4, "GRU": 3}[op]
    weights = [
        net.weight(directions, gates * hidden, features, scale=features**-0.5),
        net.weight(directions, gates * hidden, hidden, scale=hidden**-0.5),
        net.weight(directions, 2 * gates * hidden, scale=0.2),
    ]
    extra: dict[str, object] = {"linear_before_reset": step.b // 2 % 2} if op == "GRU" else {}
    direction = ("forward", "bidirectional")[directions - 1]
    first = net.node("Transpose", x, perm=[1, 0, 2])
    made = net.node(op, first, *weights, hidden_size=hidden, direction=direction, **extra)
    turned = net.node("Transpose", made, perm=[2, 0, 1, 3])
    net.add(net.reshape(turned, 0, length, directions * hidden), (length, directions * hidden))


def _convolve_sequence(net: Builder, step: Step) -> None:
    """A convolution in one dimension, dilated or not."""
    if (found := net.pick(step.a, _sequence)) is not None:
        x, (length, features) = found
        out, reach = WIDTHS[step.b % 5], 1 + step.c % 2
        turned = net.node("Transpose", x, perm=[0, 2, 1])
        made = net.node(
            "Conv", turned, net.weight(out, features, 3), net.weight(out, scale=0.2),
            kernel_shape=[3], dilations=[reach], pads=[reach, reach],
        )  # fmt: skip
        net.add(net.node("Transpose", made, perm=[0, 2, 1]), (length, out))


def _most_of(net: Builder, step: Step) -> None:
    """Two layers side by side, stacked on a new axis, of which the larger number counts."""
    if (found := net.pick(step.a, lambda s: len(s) < 3)) is None:
        return
    x, shape = found
    out = WIDTHS[step.b % 5]
    both = [net.linear(x, shape[-1], out) for _ in range(2)]
    if step.c % 2:
        made = net.node("Max", *both)
    else:
        axis = len(shape) + 1
        if net.opset < 13:
            apart = [net.node("Unsqueeze", name, axes=[axis]) for name in both]
        else:
            apart = [net.node("Unsqueeze", name, net.constant([axis])) for name in both]
        stacked = net.node("Concat", *apart, axis=axis)
        if net.opset < 18:
            made = net.node("ReduceMax", stacked, axes=[axis], keepdims=0)
        else:
            made = net.node("ReduceMax", stacked, net.constant([axis]), keepdims=0)
    net.add(made, (*shape[:-1], out))


def _einsum(net: Builder, step: Step) -> None:
    if (found := net.pick(step.a, _sequence)) is not None and net.opset >= 12:
        x, (length, features) = found
        out = WIDTHS[step.b % 5]
        equation, shape = (("bli,io->blo", (features, out)), ("bli,oi->blo", (out, features)))[step.c % 2]
        made = net.node("Einsum", x, net.weight(*shape, scale=features**-0.5), equation=equation)
        net.add(made, (length, out))


def _similarity(net: Builder, step: Step) -> None:
    """Every position against every other: a product in which the channels are summed up, then a layer over positions."""
    if (found := net.pick(step.a, _sequence)) is not None:
        x, (length, features) = found
        left, right = net.linear(x, features, 8), net.linear(x, features, 8)
        made = net.node("MatMul", left, net.node("Transpose", right, perm=[0, 2, 1]))
        out = WIDTHS[step.b % 5]
        net.add(net.linear(made, length, out), (length, out))


def _repeat_feature(net: Builder, step: Step) -> None:
    """One vector for each sample, at every position of a picture, beside what is there (as in conditional networks)."""
    if (found := net.pick(step.a, _picture)) is None:
        return
    x, (channels, height, width) = found
    vector = net.pick(step.b, lambda s: len(s) == 1)
    if vector is None or channels + vector[1][0] > MOST_CHANNELS:
        return
    apart = net.reshape(vector[0], 0, vector[1][0], 1, 1)
    wide = net.node("Expand", apart, net.constant([1, 1, height, width]))
    net.add(net.node("Concat", x, wide, axis=1), (channels + vector[1][0], height, width))


def _modulate(net: Builder, step: Step) -> None:
    """FiLM: a vector of each sample gives scale and shift of every channel."""
    if (found := net.pick(step.a, _picture)) is None:
        return
    x, (channels, height, width) = found
    vector = net.pick(step.b, lambda s: len(s) == 1)
    if vector is None:
        return
    both = net.reshape(net.linear(vector[0], vector[1][0], 2 * channels), 0, 2 * channels, 1, 1)
    if net.opset < 13:
        scale = net.node("Split", both, outputs=2, axis=1, split=[channels] * 2)
    else:
        scale = net.node("Split", both, net.constant([channels] * 2), outputs=2, axis=1)
    net.add(net.node("Add", net.node("Mul", x, scale), f"{scale}.1"), (channels, height, width))


def _where(net: Builder, step: Step) -> None:
    """One of two values of one shape, by the sign of the first."""
    if (found := net.pick(step.a, lambda s: True)) is not None:
        x, shape = found
        other = net.pick(step.b, lambda s: s == shape)
        if other is not None and other[0] != x:
            above = net.node("Greater", x, net.constant(np.float32(0.1)))
            net.add(net.node("Where", above, x, other[0]), shape)


BLOCKS: dict[str, Callable[[Builder, Step], None]] = {
    "depth_to_space": _depth_to_space, "space_to_depth": _space_to_depth, "resize": _resize, "pad": _pad,
    "pad_channels": _pad_channels, "prelu": _prelu, "gated": _gated, "spatial_gate": _spatial_gate,
    "group_norm": _group_norm, "instance_norm": _instance_norm, "rms_norm": _rms_norm,
    "grouped_attention": _grouped_attention, "recurrent": _recurrent, "convolve_sequence": _convolve_sequence,
    "most_of": _most_of, "einsum": _einsum, "similarity": _similarity, "repeat_feature": _repeat_feature,
    "modulate": _modulate, "where": _where,
}  # fmt: skip
