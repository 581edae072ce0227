"""Small networks with residual branches of every kind, and lookalikes that are none."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Convolutions(nn.Module):
    """An identity skip, a projection, a branch that begins with BatchNorm and one that ends in a gate."""

    shape = (3, 8, 8)
    sums = 3

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.b, self.skip = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.bn, self.c = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding=1)
        self.d, self.gate = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(self.a2(functional.relu(self.a1(x))) + x)
        x = self.b(x) + self.skip(x)
        x = x + self.c(functional.relu(self.bn(x)))
        y = self.d(x)
        x = x + y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Attention with sizes that are computed at run time."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(size, 3 * size), nn.Linear(size, size), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, size = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(count, length, size))


class PreNorm(nn.Module):
    """Two transformer blocks that begin their branches with LayerNorm, and scale them (LayerScale)."""

    shape = (5, 12)
    sums = 4

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(4))
        self.attentions = nn.ModuleList(Attention(12, 3) for _ in range(2))
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*s) for _ in range(2)) for s in ((12, 20), (20, 12)))
        self.scales = nn.ParameterList(nn.Parameter(torch.linspace(0.5, 2, 12)) for _ in range(2))
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(2):
            x = x + self.scales[i] * self.attentions[i](self.norms[2 * i](x))
            x = x + self.downs[i](functional.gelu(self.ups[i](self.norms[2 * i + 1](x))))
        return self.head(self.last(x).mean(1))


class PostNorm(nn.Module):
    """LayerNorm after each sum, as in BERT."""

    shape = (5, 12)
    sums = 2

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(12, 3), nn.LayerNorm(12), nn.LayerNorm(12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.attention(x) + x)
        x = self.norm2(self.down(torch.relu(self.up(x))) + x)
        return self.head(x.mean(1))


class Tied(nn.Module):
    """Three branches that share one matrix, as in ALBERT."""

    shape = (5, 12)
    sums = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(12, 12, bias=False), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + torch.tanh(self.linear(x))
        return self.head(x.mean(1))


class Nested(nn.Module):
    """A branch within a branch."""

    shape = (3, 8, 8)
    sums = 2

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = torch.relu(self.a(x))
        x = x + self.c(y + self.b(y))
        return self.head(torch.relu(x).mean((2, 3)))


class Lookalikes(nn.Module):
    """Sums that have to stay: read inside, broadcast, of two heads, without weights, and with an end that no weight silences."""

    shape = (3, 8, 8)
    sums = 0

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.d, self.e, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(18, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        inner = torch.relu(self.a(x))
        read = x + self.b(inner)
        mean = read.mean((2, 3), keepdim=True)
        broadcast = mean + self.c(read) * mean
        both = self.d(broadcast) + self.e(broadcast)
        plain = both + both * torch.sigmoid(both)
        loud = plain + torch.exp(self.e(plain))
        return self.head(torch.cat([part.mean((2, 3)) for part in (inner, loud, both)], 1))


ALL = [Convolutions, PreNorm, PostNorm, Tied, Nested]
