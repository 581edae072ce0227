"""Attention as networks really write it: separate and fused projections, shared keys, rotary positions, both scales."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class Heads(nn.Module):
    """Three projections, a residual, a perceptron; the scale is computed from a shape, as in scaled_dot_product_attention."""

    shape = (6, 5)
    num_heads, num_keys, width, inner = 4, 4, 16, 8

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, self.width)
        self.q = nn.Linear(self.width, self.num_heads * self.inner)
        self.k = nn.Linear(self.width, self.num_keys * self.inner)
        self.v = nn.Linear(self.width, self.num_keys * self.inner)
        self.o = nn.Linear(self.num_heads * self.inner, self.width)
        self.up, self.down = nn.Linear(self.width, 24), nn.Linear(24, self.width)
        self.head = nn.Linear(self.width, 3)

    def split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(x.size(0), x.size(1), heads, self.inner).transpose(1, 2)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.q(x), self.num_heads), self.split(self.k(x), self.num_keys), self.v(x)
        return functional.scaled_dot_product_attention(q, k, self.split(v, self.num_keys))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        made = self.attend(x).transpose(1, 2).reshape(x.size(0), x.size(1), -1)
        x = x + self.o(made)
        x = x + self.down(functional.gelu(self.up(x)))
        return self.head(x.mean(1))


class SharedKeys(Heads):
    """Grouped-query attention (arXiv 2305.13245): two heads read each key."""

    num_keys = 2

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        def repeat(t: torch.Tensor) -> torch.Tensor:
            n, heads, length, inner = t.shape
            times = self.num_heads // self.num_keys
            return t[:, :, None].expand(n, heads, times, length, inner).reshape(n, heads * times, length, inner)

        q = self.split(self.q(x), self.num_heads)
        k, v = (repeat(self.split(layer(x), self.num_keys)) for layer in (self.k, self.v))
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v


class OneKey(SharedKeys):
    """Multi-query attention (arXiv 1911.02150): one key for all heads, broadcast in the product."""

    num_keys = 1

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.q(x), self.num_heads), self.split(self.k(x), 1), self.split(self.v(x), 1)
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v


class Rotary(Heads):
    """Rotary positions (arXiv 2104.09864): the halves of each head's axis are mixed in pairs."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(6.0)[:, None] * (10.0 ** -torch.arange(0, 1, 0.25))[None]
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin())

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        half = self.inner // 2
        return x * self.cos + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.turn(self.split(self.q(x), 4)), self.turn(self.split(self.k(x), 4))
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ self.split(self.v(x), 4)


class Tempered(Heads):
    """A learned temperature for each head, on the queries (Swin Transformer V2, arXiv 2111.09883, has one on the scores)."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.rand(self.num_heads, 1, 1) + 0.5)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return torch.softmax((q * self.temperature) @ k.transpose(-2, -1), -1) @ v


class Shifted(Heads):
    """Biases of queries and values that lie in heads, not in the projection (DeBERTa, arXiv 2006.03654)."""

    def __init__(self) -> None:
        super().__init__()
        self.on_q, self.on_v = (nn.Parameter(torch.randn(1, self.num_heads, 1, self.inner)) for _ in range(2))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return functional.scaled_dot_product_attention(q + self.on_q, k, v + self.on_v)


class Beside(Heads):
    """Heads of another kind beside those of attention, concatenated before they are one axis again (ConvBERT, arXiv 2008.02496)."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.o = nn.Linear(self.width, 2 * self.inner), nn.Linear(6 * self.inner, self.width)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().attend(x), torch.sigmoid(self.split(self.other(x), 2))], 1)


class Fused(Heads):
    """One projection for queries, keys and values, reshaped to [3, heads, inner] and unbound."""

    def __init__(self) -> None:
        super().__init__()
        del self.q, self.k, self.v
        self.qkv = nn.Linear(self.width, 3 * self.num_heads * self.inner)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.inner).permute(2, 0, 3, 1, 4).unbind(0)
        return torch.softmax((q * self.inner**-0.5) @ k.transpose(-2, -1), -1) @ v


class Chunked(Fused):
    """The same, split along the last axis before it is reshaped to heads."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v


class Biased(Fused):
    """A bias for each head and distance, gathered from a table and added to the scores (arXiv 2103.14030)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, self.num_heads))
        places = torch.arange(6)
        self.register_buffer("distance", (places[:, None] - places[None] + 5).flatten())

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, self.inner).permute(2, 0, 3, 1, 4)
        bias = self.table[self.distance].view(6, 6, -1).permute(2, 0, 1)[None]
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner) + bias, -1) @ v


class ClassToken(Fused):
    """A learned token before the others, as in ViT (arXiv 2010.11929); the width of a head is computed from its input's."""

    inner = 4

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, self.width))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(self.inner), -1) @ v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)
        x = x + self.o(self.attend(x).transpose(1, 2).flatten(2))
        x = x + self.down(functional.gelu(self.up(x)))
        return self.head(x[:, 0])


class Positive(Heads):
    """Linear attention (arXiv 2006.16236): keys go through elu + 1, which is never zero, so a cut there is inexact."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (functional.elu(self.split(layer(x), 4)) + 1 for layer in (self.q, self.k))
        return q @ (k.transpose(-2, -1) @ self.split(self.v(x), 4)) / 6


class Crossed(Tempered):
    """Channels look at channels (cross-covariance attention, arXiv 2106.09681): a softmax over them, so a cut is inexact."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x), self.num_heads).transpose(-2, -1) for layer in (self.q, self.k, self.v))
        q, k = (functional.normalize(part, dim=-1) for part in (q, k))
        return (torch.softmax((q @ k.transpose(-2, -1)) * self.temperature, -1) @ v).transpose(-2, -1)


class Normed(Heads):
    """LayerNorm before each part, written out in means, as older exporters do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(self.width) + 0.5), nn.Parameter(torch.randn(self.width) / 5)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.scale + self.shift

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        return super().attend(self.norm(x))


EXACT = [Heads, SharedKeys, OneKey, Rotary, Tempered, Shifted, Beside, Fused, Chunked, Biased, ClassToken]
ALL = [*EXACT, Positive, Crossed, Normed]
