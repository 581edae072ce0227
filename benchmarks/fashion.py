"""Fashion-MNIST and two small networks for it, trained the same way everywhere: what the pruning benchmarks share.

The data set is one `.npz` that is not part of this repository: `x_train`, `x_test` uint8 `[N, 1, 28, 28]`, `y_train`, `y_test`.
Shapes: B rows, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = 0.2860, 0.3530
PREPROCESS = {"scale": 1 / 255, "mean": [MEAN], "std": [STD]}
_EVALUATED = 500


@dataclass(frozen=True)
class Rows:
    """Pictures as stored (uint8 `[N, 1, 28, 28]`) and their classes (int64 `[N]`)."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, positions: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Preprocessed float32 `[B, 1, 28, 28]` and classes `[B]`."""
        pictures = (torch.from_numpy(self.x[positions].astype(np.float32)) / 255 - MEAN) / STD
        return pictures, torch.from_numpy(self.y[positions].astype(np.int64))

    def drawn(self, number: int, seed: int) -> Rows:
        """So many rows without repetition."""
        chosen = np.random.default_rng(seed).choice(len(self), number, replace=False)
        return Rows(self.x[chosen], self.y[chosen])


def load_rows(path: Path) -> tuple[Rows, Rows]:
    """The training and the test rows."""
    with np.load(path) as stored:
        return Rows(stored["x_train"], stored["y_train"]), Rows(stored["x_test"], stored["y_test"])


class Block(nn.Module):
    """Two 3 × 3 convolutions beside the identity, or beside a 1 × 1 convolution where the shape changes."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or num_in != num_out:
            self.short = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(left + self.short(x))


def resnet20() -> nn.Module:
    """ResNet-20 (He et al. 2016, arXiv 1512.03385: 16, 32, 64 channels, three blocks each), whose first stride is 2: 7.8 M MACs."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for wider in (16, 32, 64):
        for number in range(3):
            layers.append(Block(width, wider, 2 if number == 0 and wider > 16 else 1))
            width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def vgg() -> nn.Module:
    """After Simonyan and Zisserman 2015 (arXiv 1409.1556), with BatchNorm: 32, 32, M, 64, 64, M, 128, 128, 128, M and a layer of
    128; the first stride is 2.
    """
    layers: list[nn.Module] = []
    width = 1
    for stage in ((32, 32), (64, 64), (128, 128, 128)):
        for wider in stage:
            stride = 2 if width == 1 else 1
            layers += [nn.Conv2d(width, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            width = wider
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "vgg": vgg}


@dataclass(frozen=True)
class Training:
    """SGD with momentum and one cycle of the learning rate (Smith and Topin 2018, arXiv 1708.07120), with labels."""

    epochs: int
    peak: float
    batch_size: int = 256
    warm_up: float = 0.25


def train(net: nn.Module, rows: Rows, plan: Training, seed: int) -> None:
    """Train in place; the order of the rows depends on the seed alone, so that two networks see the same batches."""
    order = torch.Generator().manual_seed(seed)
    steps = plan.epochs * (len(rows) // plan.batch_size)
    optimizer = torch.optim.SGD(net.parameters(), plan.peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.peak, total_steps=steps, pct_start=plan.warm_up)
    net.train()
    for _ in range(plan.epochs):
        permuted = torch.randperm(len(rows), generator=order).numpy()
        for start in range(0, len(rows) - plan.batch_size + 1, plan.batch_size):
            pictures, classes = rows.batch(permuted[start : start + plan.batch_size])
            loss = F.cross_entropy(net(pictures.contiguous(memory_format=torch.channels_last)), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    net.eval()


@torch.inference_mode()
def accuracy(net: nn.Module, rows: Rows) -> float:
    """The share of rows whose class is the largest output."""
    net.eval()
    right = 0
    for start in range(0, len(rows), _EVALUATED):
        pictures, classes = rows.batch(slice(start, start + _EVALUATED))
        right += int((net(pictures).argmax(1) == classes).sum())
    return right / len(rows)


def trained(name: str, seed: int, rows: Rows, plan: Training, folder: Path) -> nn.Module:
    """The network, trained once and kept in the folder."""
    torch.manual_seed(seed)
    net = NETWORKS[name]().to(memory_format=torch.channels_last)
    kept = folder / f"{name}-{seed}.pt"
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True))
    else:
        train(net, rows, plan, seed)
        torch.save(net.state_dict(), kept)
    return net.eval()
