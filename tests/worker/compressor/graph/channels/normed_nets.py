"""Networks with each kind of normalisation that a cut has to reckon with."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.worker.compressor.graph.channels import attention_nets


class Groups(nn.Module):
    """GroupNorm in short blocks, as exporters write it: reshaped, InstanceNormalization, reshaped back, scaled."""

    shape = (3, 8, 8)
    blocks, width = 4, 24

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, self.width, 3, padding=1), nn.GroupNorm(self.blocks, self.width)
        self.b, self.m = nn.Conv2d(self.width, self.width, 3, padding=1), nn.GroupNorm(self.blocks, self.width)
        self.c = nn.Conv2d(self.width, 10, 1)
        self.head = nn.Linear(10, 4)
        for norm in (self.n, self.m):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.n(self.a(x)))
        x = x + functional.silu(self.m(self.b(x)))
        return self.head(self.c(x).mean((2, 3)))


class LongGroups(Groups):
    """Blocks that are too long to go as a whole."""

    blocks, width = 2, 40


class FewGroups(Groups):
    """Short blocks, but too few of them to leave a tenth."""

    blocks, width = 2, 24


class Instances(Groups):
    """InstanceNorm with scales of its own: each channel by itself, which is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.m = (nn.InstanceNorm2d(self.width, affine=True) for _ in range(2))


class Layers(nn.Module):
    """LayerNorm over the channels of a residual stream, and a tied embedding."""

    shape = (6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.n, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 3)
        nn.init.normal_(self.n.weight, 1, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.down(functional.gelu(self.up(self.n(x))))
        return self.head(self.last(x).mean(1))


class NormedHeads(attention_nets.Heads):
    """Queries and keys normalised in each head (Dehghani et al. 2023, arXiv 2302.05442), short ones."""

    def __init__(self) -> None:
        super().__init__()
        self.nq, self.nk = nn.LayerNorm(self.inner), nn.LayerNorm(self.inner)
        nn.init.normal_(self.nq.weight, 1, 0.3)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return functional.scaled_dot_product_attention(self.nq(q), self.nk(k), v)


class RootMeanHeads(NormedHeads):
    """The same by the root mean square, written out, as decoders have it."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        q, k = (
            t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) * n.weight for t, n in ((q, self.nq), (k, self.nk))
        )
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


ALL = [Groups, LongGroups, Instances, Layers, FewGroups, NormedHeads, RootMeanHeads]
