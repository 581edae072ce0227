"""Small networks of every topology that pruning has to get right, made here so that no file is needed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from worker.compressor.graph.channels.analysis import Group
from worker.compressor.graph.importers import import_model
from worker.compressor.graph.network import Network


class Plain(nn.Module):
    """conv, BatchNorm, pooling, flatten (NCHW), two linear layers."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(12 * 4, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(functional.leaky_relu(self.conv2(x), 0.1), 2)
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """Two blocks that share their width through additions, one with a projection; global mean."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(8, 10, 3, 2, 1), nn.Conv2d(10, 16, 3, padding=1)
        self.skip, self.bn = nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.a2(functional.relu(self.a1(x))) + x)
        x = functional.relu(self.bn(self.b2(functional.relu(self.b1(x)))) + self.skip(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenation of branches, one of them used twice, and a split again."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 8, 1), nn.Conv2d(5, 7, 1)
        self.head = nn.Linear(7 + 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = functional.relu(self.a(x))
        ab = torch.cat([a, functional.relu(self.b(a))], 1)
        c = self.c(ab)
        left, right = c[:, :5], torch.cat([c[:, 5:], a[:, :2]], 1)
        return self.head(torch.cat([self.d(left).mean((2, 3)), right.amax((2, 3))], 1))


class Separable(nn.Module):
    """Depthwise convolution (also with a multiplier), PReLU, squeeze-and-excite."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depth, self.bn, self.act = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.BatchNorm2d(12), nn.PReLU(12)
        self.twice = nn.Conv2d(12, 24, 3, 1, 1, groups=12)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.bn(self.depth(functional.hardswish(self.expand(x)))))
        x = self.twice(x)
        gate = functional.hardsigmoid(self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate).flatten(1)


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between: any members, equal numbers per block."""

    shape = (4, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 24, 1, groups=2), nn.Conv2d(24, 16, 3, padding=1, groups=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(functional.relu(self.b(x)).mean((2, 3)))


class ShuffleStem(nn.Module):
    """Grouped convolutions over a stem and branches concatenated with it, a shuffle within: quotas that cross."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.groups = g = 4
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c = (
            nn.Conv2d(8, 32, 1, groups=g),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.Conv2d(32, 56, 1, groups=g),
        )
        self.d, self.e = nn.Conv2d(64, 32, 1, groups=g), nn.Conv2d(32, 64, 1, groups=g)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.a(x))
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = torch.cat([x, self.c(self.b(y))], 1)
        return self.head(torch.relu(x + self.e(torch.relu(self.d(x)))).mean((2, 3)))


class ShuffleMeets(nn.Module):
    """Shuffled channels that meet those of a layer, which has to make its own in the order in which the others arrive."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.beside = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 1)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(18, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        n, c, h, w = x.shape
        left, right = (x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w) + self.beside(x)).split(
            [6, 18], 1
        )
        return (self.left(left) + self.right(right)).mean((2, 3))


class ShuffleSplit(nn.Module):
    """Half of the channels go by, the other half through layers, and both are interleaved again."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 1)
        self.c, self.head = nn.Conv2d(16, 16, 1), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        stay, go = x.chunk(2, 1)
        x = interleaved(torch.cat([stay, torch.relu(self.b(torch.relu(self.a(go))))], 1))
        stay, go = x.chunk(2, 1)
        x = interleaved(torch.cat([stay, torch.relu(self.c(go))], 1))
        return self.head(x.mean((2, 3)))


def interleaved(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Nhwc(nn.Module):
    """Channels last, as TensorFlow exports have it: transposes around convolutions, flatten in NHWC order."""

    shape = (8, 8, 3)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Parameter(torch.randn(6 * 16, 5) / 10)
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(functional.relu(self.a(x.permute(0, 3, 1, 2))))
        x = functional.pad(x, [1, 1, 1, 1])[:, :, 1:-1, 1:-1]
        return torch.matmul(x.permute(0, 2, 3, 1).reshape(x.shape[0], -1), self.head) + self.bias


class Shared(nn.Module):
    """One convolution used twice, and equal vectors that an exporter merges though they have nothing in common."""

    shape = (8, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)
        for layer in (self.stem, self.twice, self.last):
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(functional.elu(self.twice(functional.elu(self.stem(x)))))
        return self.head(self.last(functional.gelu(x)).mean((2, 3)))


class Sequence(nn.Module):
    """1-d convolutions and linear layers over time (MatMul with three axes), several outputs."""

    shape = (20, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(6, 10, 3, padding=1), nn.Linear(10, 14)
        self.c, self.d = nn.Linear(14, 7), nn.Linear(14, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = functional.softplus(self.a(x.transpose(1, 2))).transpose(1, 2)
        x = functional.gelu(self.b(x))
        return torch.log_softmax(self.c(x).mean(1), -1), torch.sigmoid(self.d(x))


class Permuted(nn.Module):
    """Channels picked in another order, split in equal chunks, reshaped by computed sizes."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(9 * 16, 3)
        self.register_buffer("order", torch.tensor([3, 1, 4, 11, 5, 9, 2, 6, 8, 7, 10, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.index_select(functional.relu(self.a(x)), 1, self.order).chunk(2, 1)
        x = torch.cat([self.b(left), self.c(right)], 1)
        return self.head(functional.selu(x).reshape(x.size(0), x.size(1) * x.size(2) * x.size(3)))


class Tables(nn.Module):
    """Channels picked by a table of numbers, so that they lie along two axes."""

    shape = (3, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.register_buffer("table", torch.tensor([[3, 1, 4, 0], [5, 2, 6, 7]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))[:, self.table].flatten(1, 2)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


ALL = [
    Tables,
    Permuted,
    Plain,
    Residual,
    Dense,
    Separable,
    Shuffle,
    ShuffleStem,
    ShuffleMeets,
    ShuffleSplit,
    Nhwc,
    Shared,
    Sequence,
]


def build(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """The network with random weights and lively BatchNorm statistics, in inference mode."""
    torch.manual_seed(seed)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def export(net: nn.Module, path: Path, *, opset: int = 17, keep_batchnorm: bool = False, free: bool = True) -> Path:
    """Write an ONNX file as people do, by torch's exporter."""
    sample = torch.randn(2 if free else 1, *net.shape)
    outputs = ["y", "z"] if isinstance(net, Sequence) else ["y"]
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (sample,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in ["x", *outputs]} if free else None,
            do_constant_folding=not keep_batchnorm,
            training=torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL,
        )
    path.write_bytes(buffer.getvalue())
    return path


def load(kind: type[nn.Module], folder: Path, **options: object) -> tuple[Network, Path]:
    """Build, export and import in one."""
    path = export(build(kind), folder / f"{kind.__name__}.onnx", **options)  # type: ignore[arg-type]
    return import_model(path, "onnx", None)[0], path


def row_normalised() -> onnx.ModelProto:
    """A layer normalisation as TensorFlow spells it: each row is a channel of a BatchNormalization."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["g"]),
        helper.make_node("Relu", ["g"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["h"]),
        helper.make_node("Unsqueeze", ["h", "first"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["mean"], axes=[0, 2], keepdims=0),
        helper.make_node("Mul", ["r", "r"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[0, 2], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["zeros"]),
        helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("BatchNormalization", ["r", "ones", "zeros", "mean", "variance"], ["y"]),
    ]
    port = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    shapes = {"v": (4, 8), "w": (8, 6)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in shapes.items()]
    tensors.append(numpy_helper.from_array(np.array([0]), "first"))
    graph = helper.make_graph(nodes, "g", [port("x", ["n", 4])], [port("y", [1, "n", 6])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(network: Network, count: int = 4, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs."""
    rng = np.random.default_rng(seed)
    return {
        port.name: rng.standard_normal((count, *network.sample_shapes[port.name][1:])).astype(np.float32)
        for port in network.inputs
    }


def reference(model: Path | bytes | onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    given = str(source) if isinstance(source, Path) else source
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest magnitude."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(a).max(initial=0.0)), 1e-12))


def random_kept(groups: Iterable[Group], share: float, seed: int = 0) -> dict[int, np.ndarray]:
    """Random units of every group, as its partition allows."""
    rng = np.random.default_rng(seed)
    return {group.id: group.partition.draw(share, rng) for group in groups}
